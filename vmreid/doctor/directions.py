"""Do a scan's directions read as they should? Seen from outside: of one direction alone, what does one token change?"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from vmreid.kernels.cross_scan import DIRECTIONS
from vmreid.models import mamba_v2, vim, vmamba

Scanning = mamba_v2.SS2D | vmamba.SS2D | vim.BidirectionalMamba
GRID = (3, 4)  # not square, so that rows and columns cannot be taken for each other
CHANGE = 1e-9  # of the largest output; what rounds away is no change


def orders(block: Scanning) -> list[list[int]]:
    """Of each direction the tokens of ``GRID`` in the order in which it reads them, or of a sequence as long."""
    height, width = GRID
    rows = list(range(height * width))
    if isinstance(block, vim.BidirectionalMamba):
        return [rows, rows[::-1]]
    columns = [row * width + column for column in range(width) for row in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


def misread(block: Scanning) -> list[str]:
    """In words, what a direction of a block's scan does that it should not; nothing where all read in their order.

    Of one direction alone, a token may change itself and all that come after it in the order, and must.
    """
    found = []
    for direction, order in enumerate(orders(block)):
        scan, inputs = _alone(block, direction)
        for place in (0, len(order) // 2, len(order) - 1):
            changed = _changed(scan, inputs, order[place])
            if changed != set(order[place:]):
                found.append(f"direction {direction + 1}: token {order[place]} changes {sorted(changed)}, not {order[place:]}")
                break
    return found


def scanning(backbone: nn.Module) -> list[Scanning]:
    """The modules of a backbone that scan."""
    return [module for module in backbone.modules() if isinstance(module, Scanning)]


def _alone(block: Scanning, direction: int) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The block's scan, from tokens [1, L, D] to tokens, with one direction's output alone, and tokens to give it."""
    block = copy.deepcopy(block)
    states = block.splits[2]  # C's rows are the last of x_proj's
    with torch.no_grad():
        for other in range(block.x_proj_KED.shape[0]):
            if other != direction:
                block.x_proj_KED[other, -states:] = 0
        block.D.zero_()
    inner, length = block.x_proj_KED.shape[2], GRID[0] * GRID[1]
    tokens_1LD = torch.randn(1, length, inner, generator=torch.Generator().manual_seed(0)).to(block.D.device)

    def scan(tokens_1LD: torch.Tensor) -> torch.Tensor:
        if isinstance(block, vim.BidirectionalMamba):
            u_1DL = tokens_1LD.transpose(1, 2)
            ahead_1DL, back_1DL = block.scan(torch.stack([u_1DL, u_1DL.flip(2)], dim=1)).unbind(1)
            return (ahead_1DL + back_1DL.flip(2)).transpose(1, 2)
        if isinstance(block, mamba_v2.SS2D):  # with a class token behind the map
            y_1LD = block._scan(torch.cat([tokens_1LD, tokens_1LD[:, :1] * 0], dim=1), GRID)
            return y_1LD[:, :-1] * DIRECTIONS
        return block._scan(torch.unflatten(tokens_1LD, 1, GRID)).flatten(1, 2)

    return scan, tokens_1LD


@torch.no_grad()
def _changed(scan: Callable[[torch.Tensor], torch.Tensor], tokens_1LD: torch.Tensor, token: int) -> set[int]:
    other_1LD = tokens_1LD.clone()
    other_1LD[:, token] += 1
    before_1LD, after_1LD = scan(tokens_1LD), scan(other_1LD)
    moved_L = (after_1LD - before_1LD).abs().amax(dim=(0, 2))
    return set((moved_L > CHANGE * before_1LD.abs().max()).nonzero().flatten().tolist())
