"""What the numbers that a selective scan is given say of it: how far it reaches, and which channels do nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from vmreid.kernels.watch import Scanned

SHORT = 2.0  # tokens: a channel whose longest memory is shorter scans nothing
DEAD = 1e-4  # step size below which nothing to speak of enters a state; Mamba's own begin between 1e-3 and 1e-1
ALIKE = 1e-3  # spread of log |A| over a channel's states below which they are one
TOGETHER = 1 << 23  # step sizes of scans that are looked at together, at most


def scan_statistics(*scans: Scanned) -> dict[str, torch.Tensor]:
    """Of S scans of one shape, [S] by name, on the inputs' device; a channel is one of one direction.

    ``delta_*``: the step size Δ over all tokens (lowest 1 %, median, highest 1 %). ``delta_A_*``: lowest and highest Δ·|A| over
    tokens and states. ``decay``: exp(Δ·A) at the medians of both. ``memory_tokens``: the median over channels of the tokens after
    which the slowest state has fallen to 1/e, 1 / (mean Δ · least |A|). ``short_share``, ``dead_share``: channels with a memory
    shorter than ``SHORT``, or a mean Δ below ``DEAD``. ``alike_share``: channels whose states all decay alike. ``state_rms``:
    of the states after the last token.
    """
    bias_SKD = _stacked([scan.delta_bias_KD for scan in scans])
    delta_SBKDL = F.softplus(_stacked([scan.delta_BKDL for scan in scans]) + bias_SKD[:, None, ..., None])
    A_SKDN = _stacked([scan.A_KDN for scan in scans])
    rate_SKDN = A_SKDN.abs()
    slow_SKD, fast_SKD, mean_SKD = rate_SKDN.amin(-1), rate_SKDN.amax(-1), delta_SBKDL.mean((1, 4))
    memory_SKD = 1 / (mean_SKD * slow_SKD)
    spread_SKD = rate_SKDN.log().std(-1, correction=0)
    one_state = rate_SKDN.shape[-1] == 1
    low, median, high = _quantiles(delta_SBKDL.flatten(1), (0.01, 0.5, 0.99))
    entry_SBKDL = delta_SBKDL * _stacked([scan.u_BKDL for scan in scans])
    return {
        "delta_low": low,
        "delta_median": median,
        "delta_high": high,
        "delta_A_low": (delta_SBKDL * slow_SKD[:, None, ..., None]).flatten(1).amin(1),
        "delta_A_high": (delta_SBKDL * fast_SKD[:, None, ..., None]).flatten(1).amax(1),
        "decay": torch.exp(-median * rate_SKDN.flatten(1).median(1).values),
        "memory_tokens": memory_SKD.flatten(1).median(1).values,
        "short_share": _share(memory_SKD < SHORT),
        "dead_share": _share(mean_SKD < DEAD),
        "alike_share": spread_SKD.new_zeros(len(scans)) if one_state else _share(spread_SKD < ALIKE),
        "state_rms": _last_state_rms(delta_SBKDL, entry_SBKDL, A_SKDN, _stacked([scan.B_BKNL for scan in scans])),
    }


class Scans:
    """Takes scans one by one, and looks at those of one shape together: on a GPU that takes as long as at one of them."""

    def __init__(self) -> None:
        self._held: list[Scanned] = []
        self._seen: dict[str, list[torch.Tensor]] = {}

    def add(self, scanned: Scanned) -> None:
        """One more, of which no number may change until ``statistics``, but for its bias: ZeRO-3 takes a parameter away."""
        shape = scanned.delta_BKDL.shape
        if self._held and (shape != self._held[0].delta_BKDL.shape or (len(self._held) + 1) * shape.numel() > TOGETHER):
            self._look()
        self._held.append(replace(scanned, delta_bias_KD=scanned.delta_bias_KD.clone()))

    def statistics(self) -> dict[str, list[torch.Tensor]]:
        """What ``scan_statistics`` says of all, in their order and in parts; nothing where there were none."""
        if self._held:
            self._look()
        return self._seen

    def _look(self) -> None:
        for name, value_S in scan_statistics(*self._held).items():
            self._seen.setdefault(name, []).append(value_S)
        self._held.clear()


def _last_state_rms(
    delta_SBKDL: torch.Tensor, entry_SBKDL: torch.Tensor, A_SKDN: torch.Tensor, B_SBKNL: torch.Tensor
) -> torch.Tensor:
    """Of h_L = sum over t of exp(A · sum of Δ after t) Δ_t B_t u_t. One direction at a time, which is what takes memory."""
    after_SBKDL = delta_SBKDL.flip(4).cumsum(4).flip(4) - delta_SBKDL
    squares = []
    for k in range(delta_SBKDL.shape[2]):
        kept_SBDLN = torch.exp(after_SBKDL[:, :, k, ..., None] * A_SKDN[:, None, k, :, None])
        state_SBDN = torch.einsum("sbdln,sbdl,sbnl->sbdn", kept_SBDLN, entry_SBKDL[:, :, k], B_SBKNL[:, :, k])
        squares.append(state_SBDN.square().flatten(1).mean(1))
    return torch.stack(squares).mean(0).sqrt()


def _stacked(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).float()


def _share(mask_SKD: torch.Tensor) -> torch.Tensor:
    return mask_SKD.float().mean((1, 2))


def _quantiles(values_SN: torch.Tensor, at: tuple[float, ...]) -> tuple[torch.Tensor, ...]:
    """Of each row; over a regular sample where there are more values than torch sorts in one go."""
    sample_SN = values_SN[:, :: -(-values_SN.shape[1] // 1_000_000)]
    return torch.quantile(sample_SN, torch.tensor(at, device=values_SN.device), dim=1).unbind()
