"""The evaluation pass on 1 and 3 ranks against the plain protocol over features that are taken picture by picture."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import safetensors.torch
import torch
from pool import Pool
from tiny import plan_run, write_set

from vmreid.data.manifest import read_index
from vmreid.data.pictures import decode
from vmreid.data.ranges import ShardRanges
from vmreid.data.transforms import resize
from vmreid.distributed import Place, rank, world_size
from vmreid.evaluation.baselines import chance, colour_histogram
from vmreid.evaluation.evaluate import EvaluationPlan, evaluate
from vmreid.evaluation.extraction import FeatureFunction
from vmreid.models import ReIDModel, build_backbone
from vmreid.run_folder import WEIGHTS

CLASSES = 5


def model_from(seed: int, plan: EvaluationPlan) -> ReIDModel:
    torch.manual_seed(seed)
    data = plan.recipe.data
    return ReIDModel(build_backbone(plan.recipe.model, data.image_size, "torch"), CLASSES, data.mean, data.std).eval()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> EvaluationPlan:
    """A small set and a checkpoint whose running statistics are unlike any batch's."""
    folder = tmp_path_factory.mktemp("evaluation")
    training = plan_run(folder / "run", write_set(folder / "data"), ["evaluation.batch_size=4"])
    (data,) = training.sets
    plan = EvaluationPlan(training.recipe, data.folder, data.manifest, folder / "step-000001", "torch")
    model = model_from(training.recipe.seed + 5, plan)  # with this seed no two distances lie within rounding
    model.head.neck.running_mean.normal_()
    model.head.neck.running_var.uniform_(0.5, 2)
    plan.checkpoint.mkdir()
    safetensors.torch.save_file(model.state_dict(), plan.checkpoint / WEIGHTS)
    return plan


def side_by_hand(plan: EvaluationPlan, name: str, function: FeatureFunction) -> dict[str, Any]:
    """The oracle's lists of one split, in index order; identities and cameras from the index, not from the shards."""
    split = plan.manifest.splits[name]
    index = read_index(plan.data, split)
    ranges = ShardRanges(plan.data, split, index)
    size = plan.recipe.data.image_size
    images = [resize(decode(*ranges.picture(row), size), size) for row in range(len(index))]
    with torch.no_grad():
        features = [function(image_CHW[None])[0].tolist() for image_CHW in images]
    return {"features": features, "pids": index["pid"].tolist(), "camids": index["camid"].tolist()}


def scores_by_hand(plan: EvaluationPlan, function: FeatureFunction) -> dict[str, Any]:
    query, gallery = (side_by_hand(plan, name, function) for name in ("query", "gallery"))
    return oracle.scores(oracle.positive_ranks(query, gallery, plan.recipe.evaluation.metric))


def chance_by_hand(plan: EvaluationPlan) -> dict[str, float]:
    query, gallery = (read_index(plan.data, plan.manifest.splits[name]).tolist() for name in ("query", "gallery"))
    counts = []
    for pid, camid, *_ in query:
        kept = [other for other, camera, *_ in gallery if (other, camera) != (pid, camid)]
        counts.append((kept.count(pid), len(kept)))
    scores = chance(*torch.tensor(counts).T)
    return {key: scores[key] for key in ("mAP", "rank1")}


def evaluate_here(plan: EvaluationPlan) -> dict[str, Any]:
    """All ranks."""
    return evaluate(plan, Place(rank(), world_size(), rank())).metrics


@pytest.mark.parametrize("world", [1, 3])
def test_scores_and_floors_are_those_of_the_plain_protocol(plan: EvaluationPlan, ranks: Pool, world: int) -> None:
    trained = model_from(0, plan)
    trained.load_state_dict(safetensors.torch.load_file(plan.checkpoint / WEIGHTS))
    wanted = scores_by_hand(plan, trained)
    floors = {
        "untrained": scores_by_hand(plan, model_from(plan.recipe.seed, plan)),
        "histogram": scores_by_hand(plan, colour_histogram),
    }
    assert wanted["mAP"] != floors["untrained"]["mAP"] != floors["histogram"]["mAP"], "the test needs scores that differ"
    for found in ranks.run(world, evaluate_here, plan):
        assert (found["mAP"], found["mINP"]) == pytest.approx((wanted["mAP"], wanted["mINP"]), abs=1e-12)
        assert found["cmc"] == pytest.approx(wanted["cmc"])
        for name, floor in floors.items():
            scores = {"mAP": floor["mAP"], "mINP": floor["mINP"], "rank1": floor["cmc"][0]}
            assert found["baselines"][name] == pytest.approx(scores, abs=1e-12), name
        assert found["baselines"]["chance"] == pytest.approx(chance_by_hand(plan), abs=1e-12)
