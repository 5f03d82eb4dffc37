"""What a training step gives back, as DeepSpeed sees it."""

from __future__ import annotations

import torch
from deepspeed.runtime.zero.utils import apply_to_tensors_only

from vmreid.engine.training_module import StepResult


def test_deepspeed_finds_the_tensors_of_a_result() -> None:
    """ZeRO-3 gathers a module's parameters for its backward pass by hooks on these; it warns where it finds none."""
    found: list[float] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.item())
        return tensor

    given = StepResult(*(torch.tensor(float(number)) for number in range(6)))
    assert apply_to_tensors_only(note, given, lambda value: f"no tensors found in {type(value)}") == given
    assert found == [0, 1, 2, 3, 4, 5]
