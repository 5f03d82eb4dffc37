"""Checkpoints: DeepSpeed's files with the training state, plain weights beside them, and ``latest`` written last."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from vmreid.engine.start import gathered
from vmreid.errors import UserError
from vmreid.run_folder import WEIGHTS, RunFolder, write_atomically

STATE = "state.json"
DISK_TROUBLE = re.compile(r"PytorchStreamWriter|inline_container|iostream|No space|I/O error|os error", re.IGNORECASE)


@dataclass(frozen=True)
class TrainingState:
    """All that must survive beside DeepSpeed's own files.

    The order of the data, the rate and the random states are pure functions of ``step``, so the step is all of them.
    """

    step: int  # optimizer steps taken
    world: int
    data_digest: str


def save_checkpoint(engine: Any, folder: RunFolder, state: TrainingState) -> None:
    """All ranks. Save under ``checkpoints/step-NNNNNN``; ``latest`` names it only once everything is written.

    Raises UserError where the disk is full or fails; the checkpoint before is still whole and still the latest.
    """
    name = f"step-{state.step:06d}"
    try:
        _write(engine, folder, name, state)
    except Exception as error:  # torch and safetensors report a full disk by exceptions of their own
        reason = " ".join(str(error).split())[:150]
        if not isinstance(error, OSError) and not DISK_TROUBLE.search(reason):
            raise
        before = folder.latest()
        way = f"--resume auto goes on from {before.name if before else 'the start'}"
        raise UserError(f"{folder.checkpoints / name}: not written ({reason}); free some space; {way}") from error
    if dist.get_rank() == 0:
        write_atomically(folder.latest_file, name + "\n")
        _keep_last_two(folder, name)


def _write(engine: Any, folder: RunFolder, name: str, state: TrainingState) -> None:
    client_state = {"vmreid": asdict(state), "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    engine.save_checkpoint(str(folder.checkpoints), tag=name, client_state=client_state, save_latest=False)
    weights = consolidated_weights(engine)
    if dist.get_rank() == 0:
        path = folder.checkpoints / name / WEIGHTS
        write_atomically(path.with_name(STATE), json.dumps(asdict(state)) + "\n")
        partial = path.with_suffix(".partial")
        safetensors.torch.save_file(weights, partial)
        partial.replace(path)
    dist.barrier()


def consolidated_weights(engine: Any) -> dict[str, torch.Tensor]:
    """All ranks. On rank 0 the model's whole state on the CPU, whatever the ZeRO stage; elsewhere an empty dict."""
    engine.module.show_parameters()
    model = engine.module.model
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            if dist.get_rank() == 0:
                weights[name] = parameter.detach().cpu().clone().contiguous()
    if dist.get_rank() == 0:
        weights |= {name: value.cpu().clone() for name, value in model.state_dict().items() if name not in weights}
    return weights


def load_checkpoint(engine: Any, folder: RunFolder, checkpoint: Path) -> TrainingState:
    """All ranks. Load weights, optimizer and state. Raises UserError where they do not fit this model."""
    try:
        path, client_state = engine.load_checkpoint(str(folder.checkpoints), tag=checkpoint.name)
    except (RuntimeError, KeyError, ValueError, AssertionError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint}: does not fit this model and number of ranks ({reason}); use a new --out") from error
    if path is None:
        raise UserError(f"{checkpoint}: holds no DeepSpeed checkpoint; name another in {folder.latest_file}")
    return TrainingState(**client_state["vmreid"])


def check_resumable(checkpoint: Path, world: int, data_digest: str) -> None:
    """Rank 0, before the process group starts. Raise UserError for another number of ranks or other data."""
    state = TrainingState(**json.loads((checkpoint / STATE).read_text()))
    if state.world != world:
        raise UserError(f"{checkpoint}: written by {state.world} ranks, this run has {world}; resume on {state.world}")
    if state.data_digest != data_digest:
        raise UserError(
            f"{checkpoint}: trained on data {state.data_digest[:12]}, --data has {data_digest[:12]}; resume with the same data"
        )


def _keep_last_two(folder: RunFolder, newest: str) -> None:
    for old in sorted(path for path in folder.checkpoints.glob("step-*") if path.name < newest)[:-1]:
        shutil.rmtree(old)
