"""Forward and backward of a VIM, 197 tokens, batch 64, bf16 autocast, its convolutions by causal_conv1d and by torch, in turns:
``python docs/results/vim_convolution.py OUT.json``, on a GPU with mamba_ssm and causal_conv1d."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from vmreid.kernels import causal_conv
from vmreid.models.registry import build_backbone
from vmreid.recipes.schema import Model

STEPS = 12


def main() -> None:
    installed = causal_conv.probe
    out: dict[str, object] = {"device": torch.cuda.get_device_name()}
    for name in ("VIM-T", "VIM-S"):
        torch.manual_seed(0)
        net = build_backbone(Model(backbone=name), (224, 224), "mamba_ssm").cuda()
        image_BCHW = torch.randn(64, 3, 224, 224, device="cuda")
        features = {}
        for turn in range(2):
            for way in ("causal_conv1d", "torch"):
                causal_conv.probe = installed if way == "causal_conv1d" else lambda: (False, "")
                out[f"{name} {way} {turn}"], features[way] = milliseconds(net, image_BCHW)
        one, other = features.values()
        out[f"{name} feature difference"] = float((one - other).abs().max() / other.abs().max())
    Path(sys.argv[1]).write_text(json.dumps(out, indent=1) + "\n")


def milliseconds(net: torch.nn.Module, image_BCHW: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The median of a few, and the features."""
    took = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            feature_BC = net(image_BCHW)
        feature_BC.float().square().mean().backward()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
        net.zero_grad()
    return 1e3 * statistics.median(took), feature_BC.detach().float()


if __name__ == "__main__":
    main()
