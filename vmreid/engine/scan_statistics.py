"""What the numbers that a selective scan is given say of it: how far it reaches, and which channels do nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vmreid.kernels.watch import Scanned

SHORT = 2.0  # tokens: a channel whose longest memory is shorter scans nothing
DEAD = 1e-4  # step size below which nothing to speak of enters a state; Mamba's own begin between 1e-3 and 1e-1
ALIKE = 1e-3  # spread of log |A| over a channel's states below which they are one


def scan_statistics(scanned: Scanned) -> dict[str, torch.Tensor]:
    """Scalars by name, on the inputs' device; a channel is one of one direction.

    ``delta_*``: the step size Δ over all tokens (lowest 1 %, median, highest 1 %). ``delta_A_*``: lowest and highest Δ·|A| over
    tokens and states. ``decay``: the median of exp(Δ·A). ``memory_tokens``: the median over channels of the tokens after which
    the slowest state has fallen to 1/e, 1 / (mean Δ · least |A|). ``short_share``, ``dead_share``: channels with a memory
    shorter than ``SHORT``, or a mean Δ below ``DEAD``. ``alike_share``: channels whose states all decay alike. ``state_rms``:
    of the states after the last token.
    """
    delta_BKDL = F.softplus(scanned.delta_BKDL.float() + scanned.delta_bias_KD.float()[..., None])
    rate_KDN = scanned.A_KDN.float().abs()
    slow_KD, fast_KD, mean_KD = rate_KDN.amin(-1), rate_KDN.amax(-1), delta_BKDL.mean((0, 3))
    memory_KD = 1 / (mean_KD * slow_KD)
    spread_KD = rate_KDN.log().std(-1, correction=0)
    one_state = rate_KDN.shape[-1] == 1
    low, median, high = _quantiles(delta_BKDL, (0.01, 0.5, 0.99))
    statistics = {
        "delta_low": low,
        "delta_median": median,
        "delta_high": high,
        "delta_A_low": (delta_BKDL * slow_KD[..., None]).amin(),
        "delta_A_high": (delta_BKDL * fast_KD[..., None]).amax(),
        "decay": torch.exp(-delta_BKDL.median() * rate_KDN.median()),
        "memory_tokens": memory_KD.median(),
        "short_share": (memory_KD < SHORT).float().mean(),
        "dead_share": (mean_KD < DEAD).float().mean(),
        "alike_share": spread_KD.new_zeros(()) if one_state else (spread_KD < ALIKE).float().mean(),
    }
    return {**statistics, "state_rms": _last_state_rms(scanned, delta_BKDL)}


def _last_state_rms(scanned: Scanned, delta_BKDL: torch.Tensor) -> torch.Tensor:
    """Of h_L = sum over t of exp(A · sum of Δ after t) Δ_t B_t u_t. One direction at a time, which is what takes memory."""
    entry_BKDL = delta_BKDL * scanned.u_BKDL.float()
    after_BKDL = delta_BKDL.flip(3).cumsum(3).flip(3) - delta_BKDL
    squares = []
    for k in range(delta_BKDL.shape[1]):
        kept_BDLN = torch.exp(after_BKDL[:, k, ..., None] * scanned.A_KDN[k].float()[None, :, None])
        state_BDN = torch.einsum("bdln,bdl,bnl->bdn", kept_BDLN, entry_BKDL[:, k], scanned.B_BKNL[:, k].float())
        squares.append(state_BDN.square().mean())
    return torch.stack(squares).mean().sqrt()


def _quantiles(values: torch.Tensor, at: tuple[float, ...]) -> tuple[torch.Tensor, ...]:
    """Over a regular sample where there are more values than torch sorts in one go."""
    flat = values.flatten()
    flat = flat[:: -(-flat.numel() // 1_000_000)]
    return torch.quantile(flat, torch.tensor(at, device=flat.device)).unbind()
