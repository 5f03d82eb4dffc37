"""Checkpoints: DeepSpeed's files with the training state, plain weights beside them, digests, and ``latest`` written last."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from vmreid.digests import DIGESTS, Entry, as_text, damage, entries_of, sync
from vmreid.engine.start import gathered
from vmreid.engine.universal import SUFFIX
from vmreid.errors import UserError
from vmreid.run_folder import STATE, WEIGHTS, RunFolder, write_atomically

DISK_TROUBLE = re.compile(r"PytorchStreamWriter|inline_container|iostream|No space|I/O error|os error", re.IGNORECASE)


@dataclass(frozen=True)
class TrainingState:
    """All that must survive beside DeepSpeed's own files.

    The order of the data, the rate and the random states are pure functions of ``step``, so the step is all of them.
    """

    step: int  # optimizer steps taken
    world: int
    data_digest: str
    depth: int | None = None  # of a model that grows


def save_checkpoint(engine: Any, folder: RunFolder, state: TrainingState, keep: int) -> None:
    """All ranks. Save under ``checkpoints/step-NNNNNN``; ``latest`` names it only once everything is on the disk.
    Of the older ones the last stay, ``keep`` with this one, and the best.

    Raises UserError where the disk is full or fails; the checkpoint before is still whole and still the latest.
    """
    name = f"step-{state.step:06d}"
    try:
        _write(engine, folder, name, state)
    except Exception as error:  # torch and safetensors report a full disk by exceptions of their own
        reason = " ".join(str(error).split())[:150]
        if not isinstance(error, OSError) and not DISK_TROUBLE.search(reason):
            raise
        before = folder.latest()
        way = f"--resume auto goes on from {before.name if before else 'the start'}"
        raise UserError(f"{folder.checkpoints / name}: not written ({reason}); free some space; {way}") from error
    if dist.get_rank() == 0:
        write_atomically(folder.latest_file, name + "\n")
        sync(folder.latest_file)
        sync(folder.checkpoints)
        _forget_old(folder, name, keep)


def _write(engine: Any, folder: RunFolder, name: str, state: TrainingState) -> None:
    path = folder.checkpoints / name
    if dist.get_rank() == 0:  # what a killed save of this step left, or one with damage
        for old in (path, path.with_name(name + SUFFIX)):
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()
    client_state = {"vmreid": asdict(state), "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    engine.save_checkpoint(str(folder.checkpoints), tag=name, client_state=client_state, save_latest=False)
    weights = consolidated_weights(engine)
    if dist.get_rank() == 0:
        (path / STATE).write_text(json.dumps(asdict(state)) + "\n")
        safetensors.torch.save_file(weights, path / WEIGHTS)
    dist.barrier()
    parts: list[dict[str, Entry] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, entries_of(file for file in path.iterdir() if _writer(file) == dist.get_rank()))
    if dist.get_rank() == 0:
        write_atomically(path / DIGESTS, as_text({name: entry for part in parts if part for name, entry in part.items()}))
        sync(path / DIGESTS)
        sync(path)
    dist.barrier()


def _writer(file: Path) -> int:
    """The rank that wrote a file of a checkpoint, and so has its pages at hand."""
    part = re.search(r"pp_rank_(\d+)_", file.name)
    return int(part[1]) if part else 0


def consolidated_weights(engine: Any) -> dict[str, torch.Tensor]:
    """All ranks. On rank 0 the model's whole state on the CPU, whatever the ZeRO stage; elsewhere an empty dict."""
    engine.module.show_parameters()
    model = engine.module.model
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            if dist.get_rank() == 0:
                weights[name] = parameter.detach().cpu().clone().contiguous()
    if dist.get_rank() == 0:
        weights |= {name: value.cpu().clone() for name, value in model.state_dict().items() if name not in weights}
    return weights


def load_checkpoint(engine: Any, checkpoint: Path, form: Path | None) -> TrainingState:
    """All ranks. Load weights, optimizer and state; of another number of ranks from the universal ``form``, for which the engine
    is configured. Raises UserError where they do not fit this model."""
    source = form or checkpoint
    settings = [{key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups]
    try:
        path, client_state = engine.load_checkpoint(str(source.parent), tag=source.name)
    except (RuntimeError, KeyError, ValueError, AssertionError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: does not fit this model and number of ranks ({reason}); use a new --out") from error
    if path is None:
        raise UserError(f"{source}: holds no DeepSpeed checkpoint; name another in {checkpoint.parent / 'latest'}")
    if form:
        _mend(engine, checkpoint, settings)
    return TrainingState(**client_state["vmreid"])


def _mend(engine: Any, checkpoint: Path, settings: list[dict[str, Any]]) -> None:
    """What DeepSpeed 0.19 does wrong with a universal form: BNNeck's statistics are left out; at stage 3 every group gets the
    first one's ``settings``, and all groups count their steps in one tensor, so that a step counts once for each."""
    weights = safetensors.torch.load_file(checkpoint / WEIGHTS)
    for name, buffer in engine.module.model.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    for values in engine.optimizer.optimizer.state.values():
        if isinstance(values.get("step"), torch.Tensor):
            values["step"] = values["step"].clone()


def state_of(checkpoint: Path) -> TrainingState:
    """What a whole checkpoint says of itself."""
    return TrainingState(**json.loads((checkpoint / STATE).read_text()))


def newest_sound(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """Rank 0. The newest checkpoint whose files are as they were written, of the one that ``latest`` names and those before;
    what is wrong with newer ones. None where none was ever finished. Raises UserError where there are some, and all are damaged.
    """
    if not folder.latest_file.is_file():
        return None, []
    newest, problems = folder.latest_file.read_text().strip(), list[str]()
    before = [path.name for path in folder.whole() if path.name < newest]
    for name in [newest, *reversed(before)]:
        wrong = damage(folder.checkpoints / name)
        if not wrong:
            return folder.checkpoints / name, problems
        problems.append(f"{folder.checkpoints / name}: damaged ({wrong})")
    raise UserError(f"{'; '.join(problems)}; no checkpoint is left: bring one back, or begin anew with another --out")


def check_data(checkpoint: Path, data_digest: str) -> None:
    """Rank 0, before the process group starts. Raise UserError for other data than the checkpoint was trained on."""
    trained_on = state_of(checkpoint).data_digest
    if trained_on != data_digest:
        raise UserError(
            f"{checkpoint}: trained on data {trained_on[:12]}, --data has {data_digest[:12]}; resume with the same data"
        )


def _forget_old(folder: RunFolder, newest: str, keep: int) -> None:
    """Remove what is older than ``newest`` but the last ``keep`` checkpoints with it and the best that training has judged,
    what killed saves left, and forms for another number of ranks."""
    scores = {f"step-{entry['step']:06d}": entry["mAP"] for entry in folder.evaluations()}
    whole = [path.name for path in folder.whole() if path.name <= newest]
    best = max((name for name in whole if name in scores), key=lambda name: (scores[name], name), default=newest)
    for path in folder.checkpoints.glob("step-*"):
        if path.name < newest and path.name not in (*whole[-keep:], best):
            shutil.rmtree(path)
