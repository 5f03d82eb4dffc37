"""Kept features: no second pass over the pictures on any number of ranks, and none is taken for another's."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from pool import Pool
from tiny import plan_run, write_set

from vmreid.data.manifest import Shard, Split, read_manifest
from vmreid.distributed import Place, rank, world_size
from vmreid.errors import UserError
from vmreid.evaluation import evaluate as module
from vmreid.evaluation.evaluate import Evaluation, EvaluationPlan, evaluate
from vmreid.evaluation.extraction import KINDS, Extracted
from vmreid.evaluation.feature_cache import FeatureCache
from vmreid.evaluation.features import Features
from vmreid.models import ReIDModel, build_backbone
from vmreid.report.measure import LiveBytes
from vmreid.run_folder import WEIGHTS
from vmreid.versions import package_versions


def make_plan(folder: Path, *settings: str) -> EvaluationPlan:
    """Of a small set and an untrained checkpoint, both made at the first call."""
    data = folder / "data"
    if not data.is_dir():
        write_set(data)
    training = plan_run(folder / "-".join(["run", *settings]), data, ["evaluation.batch_size=4", *settings])
    recipe = training.recipe
    checkpoint = folder / "step-000001"
    if not checkpoint.is_dir():
        torch.manual_seed(3)
        checkpoint.mkdir()
        model = ReIDModel(build_backbone(recipe.model, recipe.data.image_size, "torch"), 6, recipe.data.mean, recipe.data.std)
        safetensors.torch.save_file(model.state_dict(), checkpoint / WEIGHTS)
    return EvaluationPlan(recipe, training.sets[0].folder, read_manifest(data), checkpoint, "torch", folder / "features")


def evaluate_here(plan: EvaluationPlan, interrupted: bool = False) -> Evaluation:
    """All ranks. ``interrupted``: shards are kept one by one, and the process is stopped at the fourth."""
    cache, before = module.FeatureCache, module.SHARDS_AT_ONCE
    if interrupted:

        class Interrupted(cache):
            kept = 0

            def write(self, *given: object) -> None:
                Interrupted.kept += 1
                if Interrupted.kept == 4:
                    raise KeyboardInterrupt
                super().write(*given)

        module.FeatureCache, module.SHARDS_AT_ONCE = Interrupted, 1
    try:
        return evaluate(plan, Place(rank(), world_size(), rank()))
    finally:
        module.FeatureCache, module.SHARDS_AT_ONCE = cache, before


def without_world(found: Evaluation) -> dict[str, object]:
    protocol = {key: value for key, value in found.metrics["protocol"].items() if key != "world"}
    return {**found.metrics, "protocol": protocol}


def test_kept_features_need_no_pictures_on_any_number_of_ranks(ranks: Pool, tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    plain = ranks.run(1, evaluate_here, EvaluationPlan(*list(vars(plan).values())[:5]))[0]
    assert not plan.features.exists()
    first = ranks.run(2, evaluate_here, plan)[0]
    others = [make_plan(tmp_path, setting) for setting in ("evaluation.flip=true", "evaluation.precision=bf16", "seed=5")]
    for path in (tmp_path / "data").glob("*.tar"):
        path.unlink()
    for world in (1, 3):
        again = ranks.run(world, evaluate_here, plan)[0]
        assert (again.queries, again.distances, again.curves) == (plain.queries, plain.distances, plain.curves)
        assert without_world(again) == without_world(first) == without_world(plain)
    for other in others:  # of other features, so pictures are asked for
        with pytest.raises(UserError, match=r"query-\d+\.tar: No such file"):
            ranks.run(1, evaluate_here, other)


def test_other_packages_take_features_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels come from Pillow and simplejpeg, convolutions perhaps from causal-conv1d."""
    plan, installed = make_plan(tmp_path), package_versions()
    folders = set()
    for other in ({}, {}, {"simplejpeg": "0"}, {"causal-conv1d": "0"}):
        monkeypatch.setattr(module, "package_versions", lambda other=other: installed | other)
        folders.add(module._cache(plan, "0" * 64, Place(0, 1, 0)).folder)
    assert len(folders) == 3


def test_an_interrupted_pass_goes_on_where_it_stopped(ranks: Pool, tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    whole = ranks.run(1, evaluate_here, EvaluationPlan(*list(vars(plan).values())[:5]))[0]
    with pytest.raises(KeyboardInterrupt):
        ranks.run(1, evaluate_here, plan, True)
    (folder,) = plan.features.iterdir()
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 3
    for name in kept:  # they are not read again
        (tmp_path / "data" / name.removesuffix(".safetensors")).unlink()
    assert ranks.run(1, evaluate_here, plan)[0].queries == whole.queries
    (folder / kept[0]).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"not readable as features .*; remove the folder"):
        ranks.run(1, evaluate_here, plan)


def test_kept_features_do_not_lie_in_memory_three_times(tmp_path: Path) -> None:
    shards = [Shard(name=f"gallery-{number}.tar", size=1, sha256="0" * 64, pictures=64) for number in range(2)]
    split = Split(pictures=128, identities=2, cameras=[0], shards=shards, index="gallery.npy", index_sha256="0" * 64)
    rows = torch.arange(128)
    given = Extracted(Features(torch.rand(128, 1024), rows + 1, rows + 2), rows, dict.fromkeys(KINDS, rows + 3))
    cache = FeatureCache(tmp_path, {})
    cache.write(split, shards, {"model": given})
    with LiveBytes() as live:
        found = cache.read(shards[::-1], ["model"])["model"]
    for name, values in vars(given.features).items():
        assert torch.equal(getattr(found.features, name), values)
    assert live.peak < 2.2 * given.features.features.nbytes
