"""The selective scan in plain PyTorch: fast on CPUs, differentiable, and at home on every device.

The recurrence h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t runs step by step, but on tensors laid out as (time,
batch, group, state, channel): a step is one multiply-add over contiguous memory, exponentials and products are taken
for a chunk of ``STEPS`` steps in one call, and the sum over the states is a batched matrix product.

Time is cut in chunks, and on a CPU the batch in blocks, so that the three work buffers stay in the cache. Kept for the
backward pass are u, delta and the state at each chunk's start: L/16·B·D·N numbers instead of the L·B·D·N of all states.
The backward pass goes through the chunks from the last to the first, recomputes decay and states of one chunk, and runs
the adjoint g_{t-1} = C_{t-1} dy_{t-1} + decay_t g_t backwards in time. With g known,

    dC_t = Σ_d h_t dy_t             dB_t = Σ_d g_t delta_t u_t          du_t = delta_t Σ_n g_t B_t
    q_t = g_t decay_t h_{t-1}       dA = Σ_{b,t} q_t delta_t            ddelta_t = Σ_n q_t A + u_t Σ_n g_t B_t

Axes beside the house's: T steps of one chunk, E channels of one group (D = K·E).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

STEPS = 16
CACHED_ELEMENTS = 2**20  # of one work buffer on a CPU; measured best between 2**19 and 2**21
DEVICE_ELEMENTS = 2**26  # elsewhere launches cost more than memory traffic, so blocks are large


def selective_scan_torch(
    u_BDL: torch.Tensor,
    delta_BDL: torch.Tensor,
    A_DN: torch.Tensor,
    B_BKNL: torch.Tensor,
    C_BKNL: torch.Tensor,
    D_D: torch.Tensor,
    delta_bias_D: torch.Tensor,
) -> torch.Tensor:
    """Return y_BDL, with u's dtype; the definition is that of ``selective_scan_reference``.

    The state is float32 (float64 where u is float64) whatever the inputs and autocast say. All seven inputs get their
    gradient; second derivatives are refused. The result is time-major in memory, so not contiguous.
    """
    dtype = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    groups = B_BKNL.shape[1]

    def time_major(x_BDL: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x_BDL.permute(2, 0, 1), 2, (groups, -1)).to(dtype).contiguous()

    def by_group(x_D: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x_D.to(dtype), 0, (groups, -1))

    with torch.autocast(u_BDL.device.type, enabled=False):
        u_LBKE = time_major(u_BDL)
        delta_LBKE = F.softplus(time_major(delta_BDL) + by_group(delta_bias_D))
        A_KNE = by_group(A_DN).transpose(1, 2).contiguous()
        B_LBKN, C_LBKN = (x.to(dtype).permute(3, 0, 1, 2).contiguous() for x in (B_BKNL, C_BKNL))
        y_LBKE = _Scan.apply(u_LBKE, delta_LBKE, A_KNE, B_LBKN, C_LBKN, by_group(D_D))  # type: ignore[no-untyped-call]
        y_BDL: torch.Tensor = y_LBKE.flatten(2).permute(1, 2, 0).to(u_BDL.dtype)
    return y_BDL


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor,
    ) -> torch.Tensor:
        y = D * u
        starts = u.new_empty(math.ceil(len(u) / STEPS), *u.shape[1:3], *A.shape[1:])
        work = _Work(u, A, buffers=2)
        for batch in work.blocks():
            decay, states = work.buffers(batch)
            states[0] = 0
            for number, time in enumerate(work.chunks()):
                at = (time, batch)
                starts[number, batch] = states[0]
                steps = _run(decay, states, u[at] * delta[at], delta[at], A, B[at])
                y[at] += _sum_states(C[at], states[1 : steps + 1])
                states[0] = states[steps]
        ctx.save_for_backward(u, delta, A, B, C, D, starts)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u, delta, A, B, C, D, starts = ctx.saved_tensors
        dy = dy.contiguous()
        ddelta, dB, dC = (torch.empty_like(x) for x in (delta, B, C))
        du = D * dy
        dA = torch.zeros_like(A)
        work = _Work(u, A, buffers=3)
        with torch.autocast(u.device.type, enabled=False):
            for batch in work.blocks():
                decay, states, adjoint = work.buffers(batch)
                carry = torch.zeros_like(states[0])  # decay_{t+1} g_{t+1} of the chunk behind
                for number, time in reversed(list(enumerate(work.chunks()))):
                    at = (time, batch)
                    states[0] = starts[number, batch]
                    scaled_u = u[at] * delta[at]
                    steps = _run(decay, states, scaled_u, delta[at], A, B[at])
                    q, g = decay[:steps], adjoint[:steps]
                    torch.mul(dy[at].unsqueeze(3), C[at].unsqueeze(4), out=g)
                    g[-1] += carry
                    for t in range(steps - 1, 0, -1):
                        g[t - 1] += q[t].mul_(g[t])
                    carry.copy_(q[0].mul_(g[0]))
                    dC[at] = _sum_channels(dy[at], states[1 : steps + 1])
                    dB[at] = _sum_channels(scaled_u, g)
                    dscaled_u = _sum_states(B[at], g)
                    du[at] += dscaled_u * delta[at]
                    q *= states[:steps]
                    dA += torch.mul(q, delta[at].unsqueeze(3), out=g).sum((0, 1))
                    ddelta[at] = torch.addcmul(q.mul_(A).sum(3), dscaled_u, u[at])
        return du, ddelta, dA, dB, dC, (dy * u).sum((0, 1))


class _Work:
    """Cuts time and batch, and lends buffers that every piece uses again: fresh memory costs more than arithmetic."""

    def __init__(self, u_LBKE: torch.Tensor, A_KNE: torch.Tensor, buffers: int) -> None:
        self.length, self.batch = u_LBKE.shape[:2]
        self.state_shape = A_KNE.shape
        budget = CACHED_ELEMENTS if u_LBKE.device.type == "cpu" else DEVICE_ELEMENTS
        blocks = max(1, math.ceil(self.batch * STEPS * A_KNE.numel() / budget))
        self.block = max(1, math.ceil(self.batch / min(blocks, max(1, self.batch))))
        self.memory = u_LBKE.new_empty(buffers, (STEPS + 1) * self.block * A_KNE.numel())

    def blocks(self) -> Iterator[slice]:
        return (slice(b, min(b + self.block, self.batch)) for b in range(0, self.batch, self.block))

    def chunks(self) -> Iterator[slice]:
        return (slice(t, min(t + STEPS, self.length)) for t in range(0, self.length, STEPS))

    def buffers(self, batch: slice) -> Iterator[torch.Tensor]:
        shape = (STEPS + 1, batch.stop - batch.start, *self.state_shape)
        return (memory[: math.prod(shape)].view(shape) for memory in self.memory)


def _run(
    decay: torch.Tensor,
    states: torch.Tensor,
    scaled_u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
) -> int:
    """From states[0] fill decay[t] and states[t + 1] for the steps t of one chunk; return how many there are."""
    steps = len(delta)
    # exp2 is twice as fast as exp on CPUs, and the factor log2(e) is paid once for A
    torch.mul(delta.unsqueeze(3), A * math.log2(math.e), out=decay[:steps]).exp2_()
    torch.mul(scaled_u.unsqueeze(3), B.unsqueeze(4), out=states[1 : steps + 1])
    for t in range(steps):
        states[t + 1].addcmul_(decay[t], states[t])
    return steps


def _sum_states(weight_TBKN: torch.Tensor, x_TBKNE: torch.Tensor) -> torch.Tensor:
    """Σ_n weight x, as (T, B, K, E)."""
    y = torch.bmm(weight_TBKN.flatten(0, 2).unsqueeze(1), x_TBKNE.flatten(0, 2))
    return y.view(*x_TBKNE.shape[:3], -1)


def _sum_channels(weight_TBKE: torch.Tensor, x_TBKNE: torch.Tensor) -> torch.Tensor:
    """Σ_e weight x, as (T, B, K, N)."""
    y = torch.bmm(weight_TBKE.flatten(0, 2).unsqueeze(1), x_TBKNE.flatten(0, 2).transpose(1, 2))
    return y.view(*x_TBKNE.shape[:3], -1)
