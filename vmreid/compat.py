"""torchvision from PyPI beside a CPU build of torch: its compiled operators are missing, all that vmreid uses is there."""

from __future__ import annotations

import sys

import torch

_library: torch.library.Library | None = None


def prepare_torchvision() -> None:
    """Make ``import torchvision`` (and so ``import timm``) work; call it before either.

    torchvision registers shape rules for operators of its extension, and fails at import where that extension did not
    load. Declaring the two operators' schemas is enough; calling them still fails, as it should.
    """
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        import torchvision  # noqa: F401
