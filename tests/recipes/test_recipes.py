"""Recipes: the note's values, overriding, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vmreid.errors import UserError
from vmreid.recipes import Recipe, dump_recipe, load_recipe, recipe_names
from vmreid.recipes.load import FOLDER
from vmreid.recipes.schema import Rerank

Flags = dict[str, tuple[str, str]]


def with_set(*assignments: str, flags: Flags | None = None, recipe: str = "note") -> Recipe:
    return load_recipe(recipe, flags or {}, assignments)


def complaint(*assignments: str, flags: Flags | None = None, recipe: str = "note") -> str:
    with pytest.raises(UserError) as caught:
        with_set(*assignments, flags=flags, recipe=recipe)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


NOTE = (FOLDER / "note.yaml").read_text()


def test_note() -> None:
    note = with_set()
    assert (note.optim.name, note.optim.lr, note.optim.warmup_epochs) == ("adamw", 1e-4, 10)
    assert 0 < note.optim.final_lr_share < 1  # cosine down to that share
    assert note.train.batch_size == 16
    assert note.data.image_size == (256, 256)
    assert note.data.augment.crop_scale == (0.8, 1.0)
    assert note.data.augment.flip == 0.5
    assert note.data.augment.colour_jitter == 0.1
    assert note.identities_per_batch == 4
    assert note.deepspeed_config == "zero1_bf16"


@pytest.mark.parametrize("name", recipe_names())
def test_dumped_and_read_again_is_equal(name: str, tmp_path: Path) -> None:
    recipe = with_set("optim.lr=1e-5", "loss.triplet_margin=null", "evaluation.rerank={k2: 3}", recipe=name)
    assert with_set(recipe=write(tmp_path / "again.yaml", dump_recipe(recipe))) == recipe


def test_frozen() -> None:
    note = with_set()
    with pytest.raises(ValidationError):
        note.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        note.optim.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.epochs=3", 3),
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=2E-3", 2e-3),
        ("optim.lr=.5", 0.5),
        ("optim.warmup_epochs=3", 3.0),
        ("train.deterministic=true", True),
        ("data.image_size=[384, 128]", (384, 128)),
        ("data.augment.crop_scale=[0.5, 1]", (0.5, 1.0)),
        ("loss.triplet_margin=null", None),
        ("model.dim=192", 192),
        ("model.weights=null", None),
        ("model.weights=vit=s.pth", "vit=s.pth"),
        ("model.weights=123", "123"),
        ("model.weights=1e-4", "1e-4"),
        ("data.shards=2024-01-01", "2024-01-01"),
        ("evaluation.rerank={}", Rerank(k1=20, k2=6, lambda_value=0.3)),
        ("evaluation.rerank={k1: 30, lambda_value: 0.1}", Rerank(k1=30, k2=6, lambda_value=0.1)),
        ("evaluation.rerank.k1=30", 30),
        ("evaluation.rerank=null", None),
    ],
)
def test_set(assignment: str, value: Any) -> None:
    found: Any = with_set(assignment)
    for part in assignment.partition("=")[0].split("."):
        found = getattr(found, part)
    assert (found, type(found)) == (value, type(value))


def test_later_values_win() -> None:
    flags = {"optim.lr": ("--lr", "3e-4"), "train.epochs": ("--epochs", "5")}
    recipe = with_set("optim.lr=1e-2", "optim.lr=2e-2", flags=flags)
    assert (recipe.optim.lr, recipe.train.epochs, recipe.train.batch_size) == (2e-2, 5, 16)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("optim.lr=banana", "optim.lr must be a valid number"),
        ("optim.lr=-1", "optim.lr must be greater than 0"),
        ("optim.lr=0", "greater than 0"),
        ("optim.lr=.inf", "finite"),
        ("optim.lr=true", "valid number"),
        ("optim.lr=", "valid number"),
        ("optim.lr=[", "valid number"),
        ("optim.lr=0x_", "valid number"),
        ("train.epochs=1.5", "train.epochs must be a valid integer"),
        ("train.epochs='3'", "valid integer"),
        ("data.workers=2024-01-01", "valid integer"),
        ("train.deterministic=1", "valid boolean"),
        ("data.augment.flip=2", "less than or equal to 1"),
        ("data.augment.crop_scale=[0.9, 0.5]", "0 < low <= high"),
        ("data.std=[0, 1, 1]", "above 0"),
        ("data.image_size=64", "data.image_size must be a list"),
        ("data.image_size=[64]", "data.image_size must be a list with more values"),
        ("data.image_size=[64, 64, 64]", "data.image_size must be a list of 2 values"),
        ("data.image_size=[65, 32]", "multiple of model.patch 16"),
        ("data.mean=[a, 0, 0]", "data.mean.0 must be a valid number"),
        ("optim.name=adam", "'adamw' or 'sgd'"),
        ("model.backbone=null", "valid string"),
        ("optim=1", "optim must be a section"),
        ("data=null", "data must be a section"),
        ("optim={name: sgd}", "optim.lr is missing"),
        ("evaluation.rerank=true", "evaluation.rerank must be a section with keys of its own"),
        ("evaluation.rerank={k1: 0}", "evaluation.rerank.k1 must be greater than 0"),
        ("evaluation.rerank={k1: 501}", "evaluation.rerank.k1 must be less than or equal to 500"),
        ("evaluation.rerank={k2: 21}", "evaluation.rerank.k2 21 must be at most evaluation.rerank.k1 = 20"),
        ("evaluation.rerank.lambda_value=1.5", "evaluation.rerank.lambda_value must be less than or equal to 1"),
    ],
)
def test_wrong_values(assignment: str, told: str) -> None:
    text = complaint(assignment)
    assert text.startswith(f"--set {assignment}: ")
    assert told in text


def test_wrong_value_of_a_flag_names_the_flag() -> None:
    assert complaint(flags={"optim.lr": ("--lr", "banana")}) == "--lr banana: optim.lr must be a valid number"
    assert complaint(flags={"optim.lr": ("--lr", "-1")}) == "--lr -1: optim.lr must be greater than 0"


@pytest.mark.parametrize(
    ("assignments", "flags", "told"),
    [
        (("train.batch_size=18",), None, "--set train.batch_size=18: train.batch_size 18 must be P x K, a multiple"),
        ((), {"train.batch_size": ("--batch_size", "18")}, "--batch_size 18: train.batch_size 18 must be P x K"),
        (("data.pictures_per_identity=5",), None, "--set data.pictures_per_identity=5: train.batch_size 16 must be"),
    ],
)
def test_batch_is_p_times_k(assignments: tuple[str, ...], flags: Flags | None, told: str) -> None:
    text = complaint(*assignments, flags=flags)
    assert text.startswith(told)
    assert "K = " in text


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("optim.lrr=1", "did you mean lr?"),
        ("optim.LR=1", "did you mean lr?"),
        ("data.augment.fip=1", "did you mean flip?"),
        ("optimizer.lr=1", "the sections are seed, deepspeed_config, model"),
        ("lr=1", "unknown key lr; the sections are"),
        ("optim.lr.x=1", "optim.lr has no keys below"),
        ("data.image_size.height=1", "data.image_size has no keys below"),
        ("=1", "unknown key"),
        ("evaluation.rerank.lambda=1", "evaluation.rerank has k1, k2, lambda_value; did you mean lambda_value?"),
    ],
)
def test_unknown_keys(assignment: str, told: str) -> None:
    text = complaint(assignment)
    assert text.startswith(f"--set {assignment.partition('=')[0]}: unknown key ")
    assert told in text


def test_set_without_a_value() -> None:
    assert "key=value" in complaint("optim.lr")


@pytest.mark.parametrize("key", ["gradient_clipping", "train.gradient_clipping", "optim.zero_optimization"])
def test_keys_of_the_deepspeed_json(key: str) -> None:
    text = complaint(f"{key}=1")
    assert key in text
    assert "DeepSpeed JSON" in text
    assert "--deepspeed_config" in text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("lr: 1e-4", "lr: banana", 'optim.lr = "banana": optim.lr must be a valid number'),
        ("lr: 1e-4", "lr: '1e-4'", 'optim.lr = "1e-4": optim.lr must be a valid number'),
        ("lr: 1e-4, ", "", "optim.lr is missing"),
        ("lr: 1e-4", "lr: 1e-4, gradient_clipping: 1", "optim.gradient_clipping belongs to the DeepSpeed JSON"),
        ("flip: 0.5", "flipp: 0.5", "did you mean flip?"),
        ("workers: 2", "workers: 2024-01-01", 'data.workers = "2024-01-01"'),
        ("seed: 0", "seed: 0\n2024-01-01: 3", "unknown key 2024-01-01"),
        ("batch_size: 16", "batch_size: 15", "train.batch_size 15 must be P x K"),
        ("seed: 0", "seed: [", "not readable as YAML"),
        ("seed: 0", "seed: 0x_", "not readable as YAML"),
    ],
)
def test_wrong_files(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = write(tmp_path / "mine.yaml", NOTE.replace(old, new, 1))
    text = complaint(recipe=path)
    assert text.startswith(f"{path}: ")
    assert told in text


@pytest.mark.parametrize("text", ["", "- 1\n", "note"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    assert "mapping" in complaint(recipe=write(tmp_path / "mine.yaml", text))


def test_a_section_without_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", NOTE.replace("loss: {label_smoothing: 0.1, triplet_margin: 0.3}", "loss:"))
    assert complaint(recipe=path) == f"{path}: loss = null: loss must be a section with keys of its own"
    assert "--set loss.triplet_margin" in complaint("loss.triplet_margin=1", recipe=path)


def test_a_section_that_may_be_null_takes_values(tmp_path: Path) -> None:
    null, unknown = (NOTE.replace("{metric: cosine,", f"{{rerank: {value}, metric: cosine,") for value in ("null", "{lambda: 0}"))
    assert with_set("evaluation.rerank.k2=3", recipe=write(tmp_path / "a.yaml", null)).evaluation.rerank == Rerank(k2=3)
    text = complaint(recipe=write(tmp_path / "b.yaml", unknown))
    assert "unknown key evaluation.rerank.lambda; evaluation.rerank has" in text
    assert text.endswith("did you mean lambda_value?")


def test_unknown_recipe() -> None:
    text = complaint(recipe="note2")
    assert "recipe note2: neither a file nor one of" in text
    assert text.endswith("did you mean note?")


def test_relative_paths_of_a_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    for name in ("recipes/set", "elsewhere/set"):
        (tmp_path / name).mkdir(parents=True)
    write(folder / "zero.json", "{}")
    write(folder / "w.pth", "")
    text = NOTE.replace("zero1_bf16", "zero.json").replace("data:\n", "data:\n  shards: ../recipes/set\n")
    write(folder / "mine.yaml", text.replace("MAMBA-V2", "VIT-S\n  weights: w.pth"))
    monkeypatch.chdir(elsewhere)
    recipe = with_set(recipe="../recipes/mine.yaml")
    assert recipe.deepspeed_config == str(folder / "zero.json")
    assert recipe.data.shards == str(folder / "set")
    assert recipe.model.weights == str(folder / "w.pth")
    assert with_set("data.shards=set", recipe="../recipes/mine.yaml").data.shards == "set"  # the command line's own


SETS = "[{shards: set, weight: 2}, {shards: 's3://bucket/other', weight: 0.5}]"


def test_several_sets(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    told = [(each.shards, each.weight) for each in with_set(f"data.shards={SETS}").data.shards or () if not isinstance(each, str)]
    assert told == [("set", 2.0), ("s3://bucket/other", 0.5)]
    path = write(tmp_path / "mine.yaml", NOTE.replace("data:\n", f"data:\n  shards: {SETS}\n"))
    recipe = with_set(recipe=path)
    assert recipe.data.shards
    assert [each if isinstance(each, str) else each.shards for each in recipe.data.shards] == [
        str(tmp_path / "set"),
        "s3://bucket/other",
    ]
    assert with_set(recipe=write(tmp_path / "again.yaml", dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("[]", "data.shards [] must name at least one set"),
        ("[{shards: a}]", "data.shards.0.weight is missing"),
        ("[{shards: a, weight: 0}]", "data.shards.0.weight must be greater than 0"),
        ("[{shards: a, weight: 1, wait: 1}]", "unknown key data.shards.0.wait; data.shards.0 has shards, weight"),
        ("[a, b]", "data.shards.0 must be"),
        ("[{shards: 3, weight: 1}]", "data.shards.0.shards must be a valid string"),
    ],
)
def test_wrong_sets(value: str, told: str) -> None:
    text = complaint(f"data.shards={value}")
    assert text.startswith("--set data.shards=")
    assert told in text
