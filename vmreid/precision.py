"""Whether a device computes in bfloat16 at a useful speed."""

from __future__ import annotations

import torch


def computes_bf16(device: torch.device) -> bool:
    """False on a CPU whose instructions lack it: there torch's bf16 products are about twenty times slower than fp32."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
