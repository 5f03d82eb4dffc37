"""A user's own checkout of fast-reid (github.com/JDAI-CV/fast-reid, He et al. 2020, arXiv 2006.02631), to be measured beside.

Nothing of it is part of this project: its compiled metric is imported from where it lies.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
from pathlib import Path

import torch

from vmreid.errors import UserError
from vmreid.evaluation.features import Features
from vmreid.versions import commit

PREFIX = "fast_reid="  # of what --against gets
FOLDER = Path("fastreid", "evaluation", "rank_cylib")
MODULE = "rank_cy"
RANKS = 50


class FastReidCheckout:
    """The metric of the checkout that ``word``, "fast_reid=PATH", points to. Raises UserError where it is not built."""

    def __init__(self, word: str) -> None:
        self._path = Path(word.removeprefix(PREFIX))
        folder = self._path / FOLDER
        built = [folder / f"{MODULE}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
        library = next((path for path in built if path.is_file()), None)
        if library is None:
            raise UserError(
                f"--against {word}: no compiled {MODULE} in {FOLDER} there; give a checkout of github.com/JDAI-CV/fast-reid and "
                f"build it: cd {folder} && python setup.py build_ext --inplace"
            )
        loader = importlib.machinery.ExtensionFileLoader(MODULE, str(library))
        try:
            self._module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(MODULE, loader, origin=str(library)))
            loader.exec_module(self._module)
        except ImportError as error:
            raise UserError(
                f"--against {word}: {library} does not import ({error}); build it for this Python and numpy"
            ) from error

    def __str__(self) -> str:
        return f"{self._path} at {commit(self._path)}, its compiled metric after torch's product"

    def mean_ap(self, query: Features, gallery: Features) -> float:
        """mAP by 1 - q·g of unit rows, a whole matrix, and its compiled Market-1501 metric."""
        distance_QG = torch.mm(query.features, gallery.features.T).neg_().add_(1)
        ids = (each.numpy() for each in (query.pids, gallery.pids, query.camids, gallery.camids))
        _, ap, _ = self._module.evaluate_cy(distance_QG.numpy(), *ids, RANKS, False)
        return math.fsum(ap) / len(ap)
