"""What every backbone is."""

from __future__ import annotations

import torch
from torch import nn

from vmreid.errors import UserError
from vmreid.run_folder import WEIGHTS


class Backbone(nn.Module):
    """A module from normalised pictures [B, 3, height, width] to features [B, dim].

    ``ends``: names, within a repeated block, of each residual branch's last layer: where they give zero, it is the identity.
    """

    dim: int
    ends: tuple[str, ...] = ("project_out",)

    def repeated_blocks(self) -> list[nn.Module]:
        """The blocks between stem and final norm, first to last."""
        raise NotImplementedError

    def load_published(self, state: dict[str, torch.Tensor], name: str) -> str:
        """Load a published state dict from the file ``name``, and return a one-line report of what was matched.

        Raises UserError where it does not fit; then nothing has been loaded.
        """
        raise UserError(
            f"{name}: is no vmreid run's {WEIGHTS}, and no published weights are known for {type(self).__name__}; give a "
            "run's folder, or null to start from scratch"
        )
