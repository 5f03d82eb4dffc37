"""DeepSpeed's one door: its environment set right before it is imported, its engine made from a module and a config, or ended."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from typing import Any

import torch
from torch import nn

CACHING = "_PartitionedParameterCoordinator__params_to_release"  # by functools, for all engines in one


def make_engine(module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """All ranks, in a process group. The DeepSpeed engine around ``module`` and ``optimizer``; ``take_step`` steps it."""
    deepspeed = import_deepspeed()
    if not config.get("zero_optimization", {}).get("stage", 0):
        config = {**config, "gradient_clipping": 0}  # take_step clips
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def end_engine(engine: Any) -> None:
    """After this, and once the caller has let go of it, an engine's memory is free: DeepSpeed's ``destroy`` leaves one
    of ZeRO-3 on its stack of modules at work, and among a method's cached answers."""
    engine.destroy()
    if engine.zero_optimization_stage() == 3:
        from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

        stack = parameter_offload.FWD_MODULE_STACK
        stack[:] = [module for module in stack if module is not engine.module]
        method = vars(partitioned_param_coordinator.PartitionedParameterCoordinator)[CACHING]
        inspect.getclosurevars(method).nonlocals["func"].cache_clear()


def take_step(engine: Any, clipping: float) -> torch.Tensor | float:
    """All ranks, after a backward. Step the engine; the gradient norm before it was clipped to ``clipping`` (0: not at all).

    Without ZeRO, DeepSpeed keeps no norm, and clips by one that it waits for on the host; so it is taken and used here. A step
    whose norm is not finite changes no weight: with ZeRO, DeepSpeed sees to that.
    """
    if engine.zero_optimization_stage():
        engine.step()
        norm: torch.Tensor | float = engine.get_global_grad_norm()
        return norm
    parameters = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if norm.is_cuda:
        engine.optimizer.found_inf = (~norm.isfinite()).float()  # fused optimizers skip such a step, and nobody waits to see
    elif not norm.isfinite():
        return norm
    if clipping and engine.is_gradient_accumulation_boundary():
        torch.nn.utils.clip_grads_with_norm_(parameters, clipping, norm)
    engine.step()
    return norm


def whole_gradient(parameter: nn.Parameter) -> torch.Tensor:
    """All ranks, between a backward and the optimizer's step. A parameter's gradient before clipping, whatever the ZeRO stage."""
    from deepspeed.utils import safe_get_full_grad

    gradient: torch.Tensor | None = safe_get_full_grad(parameter)
    return torch.zeros_like(parameter) if gradient is None else gradient


def gathered(parameters: list[nn.Parameter]) -> Any:
    """All ranks. Context in which parameters that ZeRO-3 has partitioned are whole; for the others, nothing happens."""
    return import_deepspeed().zero.GatheredParameters(parameters)


def import_deepspeed() -> Any:
    """The package, its own printing and its builds off; in a process group, joined to that."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's own old calls
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # The shared-memory op serves inference alone. Its build takes a minute, and one killed in that build leaves a lock
    # on which every later rank waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.distributed.is_initialized() and not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False, verbose=False)
    return deepspeed
