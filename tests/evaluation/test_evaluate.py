"""The evaluation pass on 1 and 3 ranks against the plain protocol over features that are taken picture by picture."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import safetensors.torch
import torch
from dense_rerank import final_distances, ranks_by_sorting
from PIL import Image
from pool import Pool
from tiny import plan_run, write_set

from shards.sources import Picture
from shards.writer import write_shards
from vmreid.data.manifest import read_index
from vmreid.data.pictures import decode
from vmreid.data.ranges import ShardRanges
from vmreid.data.transforms import resize
from vmreid.distributed import Place, rank, world_size
from vmreid.evaluation.baselines import chance, colour_histogram
from vmreid.evaluation.evaluate import Evaluation, EvaluationPlan, evaluate, features_by
from vmreid.evaluation.extraction import FeatureFunction
from vmreid.evaluation.features import Features
from vmreid.evaluation.histogram import BINS
from vmreid.evaluation.query_scores import QueryScores
from vmreid.models import ReIDModel, build_backbone
from vmreid.recipes.schema import Rerank
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


@pytest.mark.parametrize("world", [1, 3])
def test_reranked_scores_are_those_of_the_dense_method(plan: EvaluationPlan, ranks: Pool, world: int) -> None:
    trained = model_from(0, plan)
    trained.load_state_dict(safetensors.torch.load_file(plan.checkpoint / WEIGHTS))
    sides = [side_by_hand(plan, name, trained) for name in ("query", "gallery")]
    metric = plan.recipe.evaluation.metric
    final_QG = final_distances(*(np.array(side["features"]) for side in sides), metric, k1=5, k2=2, share=0.3)
    query, gallery = (Features(*(torch.tensor(side[key]) for key in ("features", "pids", "camids"))) for side in sides)
    wanted = oracle.scores(ranks_by_sorting(final_QG, query, gallery, metric))
    evaluation = plan.recipe.evaluation.model_copy(update={"rerank": Rerank(k1=5, k2=2)})
    asked = replace(plan, recipe=plan.recipe.model_copy(update={"evaluation": evaluation}))
    for found in ranks.run(world, evaluate_here, asked):
        reranked = found["reranked"]
        assert (reranked["mAP"], reranked["mINP"]) == pytest.approx((wanted["mAP"], wanted["mINP"]), abs=1e-12)
        assert reranked["cmc"] == pytest.approx(wanted["cmc"])
        assert reranked["mAP"] != found["mAP"]


def test_views_and_types_come_from_the_shards_to_each_query(ranks: Pool, tmp_path: Path) -> None:
    """A set whose pictures state them, each its own; on one rank and on three, of which one or two have no picture."""

    def picture(pid: int, camid: int) -> Picture:
        return Picture(pid, camid, f"{pid}_{camid}.png", partial(png, pid, camid), view=camid, type=pid % 3)

    splits = {
        "train": [picture(pid, camid) for pid in range(6) for camid in (0, 1)],
        "query": [picture(pid, 0) for pid in range(6, 11)],
        "gallery": [picture(pid, 1) for pid in range(6, 11)],
    }
    write_shards(splits, tmp_path / "data", {"name": "typed"})
    training = plan_run(tmp_path / "run", tmp_path / "data", ["evaluation.batch_size=2"])
    (data,) = training.sets
    plan = EvaluationPlan(training.recipe, data.folder, data.manifest, tmp_path / "step-000001", "torch")
    plan.checkpoint.mkdir()
    safetensors.torch.save_file(model_from(1, plan).state_dict(), plan.checkpoint / WEIGHTS)
    found = [ranks.run(world, evaluate_whole, plan)[0] for world in (1, 3)]
    for evaluation in found:
        scores = QueryScores.from_npz(evaluation.queries)
        assert [scores.pid.tolist(), scores.view.tolist()] == [[6, 7, 8, 9, 10], [0] * 5]
        assert scores.type.tolist() == [0, 1, 2, 0, 1]
        assert {value: part["queries"] for value, part in evaluation.metrics["breakdown"]["type"].items()} == {
            "0": 2,
            "1": 2,
            "2": 1,
        }
        assert evaluation.metrics["protocol"]["per_query"]["sha256"] == hashlib.sha256(evaluation.queries).hexdigest()
    assert found[0].queries == found[1].queries


def png(pid: int, camid: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 64), (pid * 20, 60 + 90 * camid, 250 - pid * 20)).save(file, "PNG")
    return file.getvalue()


def changed(plan: EvaluationPlan, **changes: Any) -> EvaluationPlan:
    """With other values in the recipe's section."""
    evaluation = plan.recipe.evaluation.model_copy(update=changes)
    return replace(plan, recipe=plan.recipe.model_copy(update={"evaluation": evaluation}))


def on_ranks(plan: EvaluationPlan, ranks: Pool, **changes: Any) -> Evaluation:
    """On one rank and on three, whose shares are of other sizes: the same, but for the number of ranks."""
    plan = changed(plan, **changes)
    one, three = (ranks.run(world, evaluate_whole, plan)[0] for world in (1, 3))
    assert one.queries == three.queries
    assert one.distances == three.distances
    return three


def test_flip_scores_the_mean_of_a_picture_and_its_mirror_image(plan: EvaluationPlan, ranks: Pool) -> None:
    trained = model_from(0, plan)
    trained.load_state_dict(safetensors.torch.load_file(plan.checkpoint / WEIGHTS))
    wanted = scores_by_hand(plan, lambda image_BCHW: (trained(image_BCHW) + trained(image_BCHW.flip(3))) / 2)
    assert wanted["mAP"] != scores_by_hand(plan, trained)["mAP"], "the test needs pictures whose mirror images differ"
    metrics = on_ranks(plan, ranks, flip=True).metrics
    assert (metrics["mAP"], metrics["mINP"]) == pytest.approx((wanted["mAP"], wanted["mINP"]), abs=1e-12)
    assert (metrics["protocol"]["flip"], metrics["protocol"]["precision"]) == (True, "fp32")


def test_over_drawn_galleries_no_query_has_a_score_of_its_own(plan: EvaluationPlan, ranks: Pool) -> None:
    found = on_ranks(plan, ranks, protocol="vehicleid")
    assert (found.queries, found.precisions, found.examples) == (None, {}, [])
    assert found.metrics["spread"].keys() == {"mAP", "mINP", "rank1", "rank5", "rank10"}
    ledger = found.metrics["protocol"]
    assert (ledger["rule"], ledger["excluded"]) == ("vehicleid", "junk (pid -1)")
    assert "per_query" not in ledger


def test_the_backbone_runs_under_autocast_where_the_recipe_asks_for_bf16(plan: EvaluationPlan, ranks: Pool) -> None:
    """Distances differ from those in fp32, by little."""
    fp32, bf16 = (on_ranks(plan, ranks, precision=precision) for precision in ("fp32", "bf16"))
    assert bf16.metrics["protocol"]["precision"] == "bf16"
    assert fp32.distances != bf16.distances
    middles = [np.average(np.arange(BINS), weights=found.distances.negative) for found in (fp32, bf16)]
    assert middles[1] == pytest.approx(middles[0], rel=0.02)


def test_a_pictures_feature_does_not_depend_on_how_many_come_with_it(plan: EvaluationPlan) -> None:
    """Bit for bit; on some processors a pass of another size has other sums, so all passes are of one."""
    plan = changed(plan, batch_size=16)
    model, sizes = model_from(1, plan), []
    model.backbone.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    function = features_by(model, plan)
    image_BCHW = torch.randint(0, 256, (16, 3, 64, 32), dtype=torch.uint8)
    with torch.no_grad():
        whole_BF = function(image_BCHW)
        for number in (1, 3, 7):
            assert torch.equal(function(image_BCHW[:number]), whole_BF[:number])
    assert sizes == [16] * 4


def evaluate_whole(plan: EvaluationPlan) -> Evaluation:
    """All ranks."""
    return evaluate(plan, Place(rank(), world_size(), rank()))
