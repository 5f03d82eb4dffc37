"""Feature rows with their identities and cameras, and what must hold of them before they are ranked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vmreid.distributed import concatenate_over_ranks
from vmreid.errors import UserError
from vmreid.evaluation.distances import Metric, Rows, prepare

JUNK = -1
SHORTEST = 1e-140  # under cosine: squares of shorter rows lose digits in float64


@dataclass(frozen=True)
class Features:
    """``features`` [n, F] float32 or float64, ``pids`` and ``camids`` [n] int64, all on one device."""

    features: torch.Tensor
    pids: torch.Tensor
    camids: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: torch.Tensor | slice) -> Features:
        return Features(self.features[rows], self.pids[rows], self.camids[rows])

    def to(self, device: torch.device) -> Features:
        """The same on ``device``."""
        return Features(*(values.to(device) for values in vars(self).values()))


def checked(query: Features, gallery_part: Features, gallery_index_part: torch.Tensor, metric: Metric) -> tuple[Rows, Rows]:
    """All ranks. Both sides' rows, ready for ``metric``.

    Raises:
        UserError: on every rank, if any rank has what cannot be ranked: the lowest such rank's line.
    """
    problem = (
        _misfit("query", query, torch.arange(len(query)))
        or _misfit("gallery", gallery_part, gallery_index_part)
        or _clash(query, gallery_part)
    )
    _refuse_together(problem)
    rows = [prepare(side.features, metric) for side in (query, gallery_part)]
    _refuse_together(_bad_row("query", rows[0], torch.arange(len(query))) or _bad_row("gallery", rows[1], gallery_index_part))
    return rows[0], rows[1]


def _misfit(side: str, given: Features, index: torch.Tensor) -> str:
    """What is wrong with the types and shapes of one side, as one line; empty if nothing is."""
    dtype, shape, number = given.features.dtype, tuple(given.features.shape), len(given)
    if len(shape) != 2 or shape[1] == 0 or dtype not in (torch.float32, torch.float64):
        return f"{side} features are {dtype} of shape {shape}; give float32 or float64 rows [n, F] with F >= 1"
    for name, ids in (("pids", given.pids), ("camids", given.camids), ("indices", index)):
        if ids.dtype != torch.int64 or tuple(ids.shape) != (number,):
            return f"{side} {name} are {ids.dtype} of shape {tuple(ids.shape)}; give {number} int64, one for each row"
    return ""


def _clash(query: Features, gallery: Features) -> str:
    width, other = query.features.shape[1], gallery.features.shape[1]
    return f"query features have {width} columns, gallery features {other}; both must agree" if width != other else ""


def _bad_row(side: str, rows: Rows, index: torch.Tensor) -> str:
    """What is wrong with a row, as one line; empty if nothing is."""
    bad = (~(16 * rows.length_N.square()).isfinite()).nonzero()  # 16: so that no distance overflows either
    if len(bad):
        row, x_F = int(index[int(bad[0, 0])]), rows.x_NF[bad[0, 0]]
        if x_F.isfinite().all():
            return f"{side} row {row} has {float(x_F.abs().max()):g}, whose square leaves float64; scale both sides down"
        return f"non-finite feature in {side} row {row}; repair what made it, or leave the row out"
    short = (rows.length_N < SHORTEST).nonzero()
    if rows.metric == "cosine" and len(short):
        row = int(index[int(short[0, 0])])
        what = (
            f"all-zero {side} row {row}"
            if not rows.x_NF[short[0, 0]].any()
            else f"{side} row {row} is shorter than {SHORTEST:g} and"
        )
        return f"{what} has no cosine; leave it out or use the metric euclidean"
    return ""


def _refuse_together(problem: str) -> None:
    """All ranks. Raise UserError on every rank if any has a problem."""
    line = torch.tensor(list(f"{problem}\n".encode()), dtype=torch.uint8)
    problems = bytes(concatenate_over_ranks(line).tolist()).decode().split("\n")
    if any(problems):
        raise UserError(next(problem for problem in problems if problem))
