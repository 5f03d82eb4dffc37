"""The DeepSpeed JSON: what it owns, what it may not say, and the keys that vmreid derives for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmreid.errors import UserError
from vmreid.recipes.load import suggestion

FOLDER = Path(__file__).parents[2] / "ds_configs"
OWNED_BY_RECIPE = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "optimizer": "optim",
    "scheduler": "optim",
}
ATTENTION_ONLY = ("VIT-",)  # backbones that keep no fp32-only parameters


def read_deepspeed_config(name: str, recipe: Path) -> tuple[Path, dict[str, Any]]:
    """Read a JSON by name (``zero1_bf16``) or path. ``recipe`` is the recipe's file, for messages.

    Raises UserError where it is absent, broken, or gives a value that the recipe owns.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    path = FOLDER / f"{name}.json" if name in known else Path(name)
    if not path.is_file():
        raise UserError(f"deepspeed_config {name}: neither a file nor one of {', '.join(known)}{suggestion(path.stem, known)}")
    try:
        config = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); mend the file") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds a {type(config).__name__}; a DeepSpeed config is a JSON object")
    for key, owner in OWNED_BY_RECIPE.items():
        if key in config:
            raise UserError(f"{path}: {key} is owned by the recipe's {owner} ({recipe}); take it out of the JSON")
    accumulation = config.get("gradient_accumulation_steps", 1)
    if not isinstance(accumulation, int) or isinstance(accumulation, bool) or accumulation < 1:
        raise UserError(f"{path}: gradient_accumulation_steps {accumulation!r} must be a whole number of at least 1")
    clipping = config.get("gradient_clipping", 1.0)
    if not isinstance(clipping, int | float) or isinstance(clipping, bool) or clipping < 0:
        raise UserError(f"{path}: gradient_clipping {clipping!r} must be a number of at least 0 (0: off)")
    if zero_stage(config) not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage {zero_stage(config)!r} must be 0, 1, 2 or 3")
    return path, config


def check_precision(config: dict[str, Any], backbone: str, path: Path) -> None:
    """Raise UserError for a precision section that would train wrongly."""
    bf16, fp16 = bf16_parameters(config), _enabled(config, "fp16")
    instead = 'use "torch_autocast": {"enabled": true, "dtype": "bfloat16"} as in ds_configs/zero1_bf16.json'
    if fp16 or config.get("torch_autocast", {}).get("dtype") in ("float16", "fp16"):
        raise UserError(f"{path}: fp16 skips steps while it looks for a loss scale, so runs do not repeat; {instead}")
    if bf16 and not backbone.startswith(ATTENTION_ONLY):
        raise UserError(
            f"{path}: section bf16 casts A_log, D and the bias of delta to bf16, which overflows in {backbone}; {instead}"
        )
    if bf16 and zero_stage(config) == 0:
        raise UserError(
            f"{path}: section bf16 at ZeRO stage 0 takes wrong steps (DeepSpeed 0.19); take stage 1 to 3, or {instead}"
        )


def zero_stage(config: dict[str, Any]) -> int:
    """The ZeRO stage; 0 where the section is left out."""
    stage: int = config.get("zero_optimization", {}).get("stage", 0)
    return stage


def accumulation_steps(config: dict[str, Any]) -> int:
    """Micro-batches an optimizer step."""
    steps: int = config.get("gradient_accumulation_steps", 1)
    return steps


def bf16_parameters(config: dict[str, Any]) -> bool:
    """Whether parameters themselves are bf16 (section ``bf16``)."""
    return _enabled(config, "bf16")


def autocasts(config: dict[str, Any]) -> bool:
    """Whether products run in lower precision while parameters stay fp32 (section ``torch_autocast``)."""
    return _enabled(config, "torch_autocast")


def precision_name(config: dict[str, Any], native_bf16: bool) -> str:
    """For logs: ``bf16 parameters``, ``bf16 autocast`` or ``fp32``, and why where it is not what the JSON asks for."""
    if bf16_parameters(config):
        return "bf16 parameters" + ("" if native_bf16 else " (slow: this CPU has no bf16 instructions)")
    if autocasts(config):
        return "bf16 autocast" if native_bf16 else "fp32 (the JSON's bf16 autocast is off: this CPU has no bf16 instructions)"
    return "fp32"


def with_derived_keys(config: dict[str, Any], batch_size: int, world: int, native_bf16: bool) -> dict[str, Any]:
    """The config that DeepSpeed gets: its batch keys from the recipe's batch size, its own printing off.

    Without ``native_bf16``, autocast is off: it would cost twenty times the time and bring nothing.
    """
    accumulation = accumulation_steps(config)
    derived = {
        "gradient_clipping": 1.0,  # DeepSpeed's default, made visible
        "steps_per_print": 2**31 - 1,
        **config,
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // (world * accumulation),
        "gradient_accumulation_steps": accumulation,
        "zero_allow_untested_optimizer": True,  # SGD; the test of equal steps covers it
    }
    if not native_bf16:
        derived.pop("torch_autocast", None)
    return derived


def _enabled(config: dict[str, Any], section: str) -> bool:
    return bool(config.get(section, {}).get("enabled", False))
