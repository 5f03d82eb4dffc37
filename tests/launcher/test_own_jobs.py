"""Jobs on data of their own: a broken picture, a full disk, published weights."""

from __future__ import annotations

import os
import subprocess

import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny import SMALL, command_on_ranks, runs_of, set_words, write_set

from shards.sources import image_folder
from shards.writer import write_shards
from vmreid.errors import UserError
from vmreid.models import build_backbone
from vmreid.recipes.schema import Model
from vmreid.run_folder import RunFolder


def test_a_picture_that_does_not_decode_ends_the_job_by_name(ranks, tmp_path):
    for identity in range(12):
        for camera in (1, 2):
            path = tmp_path / f"crops/{identity:02d}/{identity:02d}_c{camera}_0.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 64), (identity * 20, 100, camera * 50)).save(path)
    (tmp_path / "crops/03/03_c2_0.jpg").write_bytes(b"no picture")
    write_shards(image_folder(tmp_path / "crops"), tmp_path / "data", {"name": "image_folder"})
    words = ["--recipe", "demo", "--data", "data", "--out", "runs/run", *set_words(*SMALL["VIT-S"])]
    with pytest.raises(UserError, match=r"train-\d+.tar picture 0000000\d: does not decode.*shards.verify") as caught:
        ranks.run(2, command_on_ranks, "launcher.train", words, tmp_path)
    assert "\n" not in str(caught.value)
    (run,) = runs_of(tmp_path)
    assert run.info.status == "FAILED"


def test_a_full_disk_while_saving_names_the_checkpoint_and_the_way_out(ranks, tmp_path):
    write_set(tmp_path / "data")
    (tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path / "small")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    words = ["--recipe", "demo", "--data", "data", "--out", "small/run", *set_words(*SMALL["VIT-S"])]
    try:
        with pytest.raises(UserError, match=r"step-000001: not written .*free some space; --resume auto goes on from the start"):
            ranks.run(1, command_on_ranks, "launcher.train", words, tmp_path)
    finally:
        ranks.run(1, os.chdir, "/")
        subprocess.run(["umount", "--lazy", str(tmp_path / "small")], check=True)


def test_a_run_from_published_weights_says_so_and_is_evaluated_without_their_file(ranks, tmp_path):
    write_set(tmp_path / "data")
    model = Model(backbone="VIT-S", dim=48, depth=2, heads=3)
    torch.manual_seed(5)
    published = build_backbone(model, (64, 32), "torch").vit.state_dict()
    torch.save(published, tmp_path / "published.pth")
    words = ["--recipe", "demo", "--data", "data", "--out", "runs/run", "--lr", "1e-30", *set_words(*SMALL["VIT-S"])]
    ranks.run(1, command_on_ranks, "launcher.train", [*words, "--set", "model.weights=published.pth"], tmp_path)
    trained = safetensors.torch.load_file(RunFolder(tmp_path / "runs/run").latest() / "weights.safetensors")
    assert torch.equal(trained["backbone.vit.blocks.0.attn.qkv.weight"], published["blocks.0.attn.qkv.weight"])
    (run,) = runs_of(tmp_path)
    assert run.data.params["weights"].startswith(f"{len(published)} tensors from published.pth")
    (tmp_path / "published.pth").unlink()
    ranks.run(1, command_on_ranks, "launcher.evaluate", ["--run", "runs/run"], tmp_path)
    assert (tmp_path / "runs/run/metrics.json").is_file()
