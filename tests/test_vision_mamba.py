"""The note's model test of every family at small sizes; and faults made on purpose, each of which it must find and name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import BASE, SMALL, with_gradient

import vmreid.kernels
from vmreid.doctor.model_test import Check, model_test
from vmreid.kernels import cross_scan, torch_scan
from vmreid.models import mamba_v2
from vmreid.models.reid import Head, ReIDModel
from vmreid.recipes import load_recipe

FAMILIES = ("VIT-S", "MAMBA-S", "MAMBA-V2", "VMAMBA-T", "VIM-T")
SCAN_CHECKS = {"directions", "scan"}


def checks(backbone: str) -> dict[str, Check]:
    recipe = load_recipe("note", {"model.backbone": ("--backbone", backbone)}, [*BASE, *SMALL[backbone]])
    return {check.name: check for check in model_test(recipe.model, (64, 32), "torch", torch.device("cpu"))}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_passes(backbone: str) -> None:
    found = checks(backbone)
    assert [check for check in found.values() if not check.holds] == []
    everywhere = {"shapes", "a gradient at every parameter", "first loss", "one batch learnt by heart"}
    assert found.keys() == everywhere | (SCAN_CHECKS if backbone in ("MAMBA-V2", "VMAMBA-T", "VIM-T") else set())


def fourth_direction_reads_like_the_second(patch: pytest.MonkeyPatch) -> None:
    def directed(rows, columns, rows_back, columns_back):
        return torch.stack((rows, columns, rows_back.flip(1), columns_back), dim=1).transpose(2, 3)

    def summed(y_BKDL: torch.Tensor, height: int, width: int) -> torch.Tensor:
        y_BKDL = torch.cat([y_BKDL[:, :3], y_BKDL[:, 3:].flip(3)], dim=1)  # so that tokens are still in their places
        return SUM(y_BKDL, height, width)

    patch.setattr(cross_scan, "_directed", directed)
    patch.setattr("vmreid.kernels.ss2d.cross_sum", summed)


def a_parameter_is_cut_off(patch: pytest.MonkeyPatch) -> None:
    rates = mamba_v2.decay_rates
    patch.setattr(mamba_v2, "decay_rates", lambda A_log_DN: rates(A_log_DN).detach())


def last_direction_reversed(gradient_BDL: torch.Tensor) -> torch.Tensor:
    """The last of four directions' gradients in the wrong order of tokens."""
    quarter = gradient_BDL.shape[1] // 4
    return torch.cat([gradient_BDL[:, :-quarter], gradient_BDL[:, -quarter:].flip(2)], dim=1)


def one_direction_is_reversed_in_the_backward(patch: pytest.MonkeyPatch) -> None:
    scan = torch_scan.selective_scan_torch
    patch.setitem(vmreid.kernels._SCANS, "torch", lambda u_BDL, *rest: scan(with_gradient(u_BDL, last_direction_reversed), *rest))


def the_decay_is_wrong(patch: pytest.MonkeyPatch) -> None:
    scan = torch_scan.selective_scan_torch
    patch.setitem(vmreid.kernels._SCANS, "torch", lambda u_BDL, delta_BDL, A_DN, *rest: scan(u_BDL, delta_BDL, 2 * A_DN, *rest))


def the_classifier_is_too_large(patch: pytest.MonkeyPatch) -> None:
    start = Head.__init__

    def larger(head: Head, dim: int, classes: int) -> None:
        start(head, dim, classes)
        head.classifier.weight.data *= 100

    patch.setattr(Head, "__init__", larger)


def pictures_do_not_reach_the_head(patch: pytest.MonkeyPatch) -> None:
    features = ReIDModel.features
    patch.setattr(ReIDModel, "features", lambda model, image_BCHW: features(model, image_BCHW[:1]).expand(len(image_BCHW), -1))


SUM = cross_scan.cross_sum
FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = [
    (fourth_direction_reads_like_the_second, "directions", "block 1, direction 4: token "),
    (a_parameter_is_cut_off, "a gradient at every parameter", "backbone.blocks.0.A_log, backbone.blocks.1.A_log of "),
    (one_direction_is_reversed_in_the_backward, "scan", "differ most in the gradient of x, by "),
    (the_decay_is_wrong, "scan", "torch and reference differ most in "),
    (the_classifier_is_too_large, "first loss", "ln 100 = 4.605"),
    (pictures_do_not_reach_the_head, "one batch learnt by heart", "after 200 steps"),
]


@pytest.mark.parametrize(("fault", "name", "words"), FAULTS)
def test_a_fault_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None], name: str, words: str
) -> None:
    fault(monkeypatch)
    backbone = "VIT-S" if fault is the_classifier_is_too_large else "MAMBA-V2"  # whose features hardly differ at the start
    check = checks(backbone)[name]
    assert not check.holds
    assert words in check.words
