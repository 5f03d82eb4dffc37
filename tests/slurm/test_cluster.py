"""Training jobs on a Slurm cluster that loses nodes, network and time: what comes out is what an undisturbed run gives."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from cluster import Cluster, cluster, missing
from tiny import SMALL, plan_run, read_json_lines, set_words, train_on_ranks, write_set

from vmreid.engine.checkpoint import newest_sound
from vmreid.run_folder import WEIGHTS, RunFolder

ROOT = Path(__file__).parents[2]
EPOCHS = 120  # steps: so many that one can strike in between
SETTINGS = [*SMALL["VIT-S"], f"train.epochs={EPOCHS}", "train.checkpoint_epochs=10", "deepspeed_config=zero1_fp32"]
why_not = missing()
pytestmark = pytest.mark.skipif(bool(why_not), reason=why_not)


@pytest.fixture(scope="module")
def undisturbed(ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set and a run of two ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_set(folder / "data")
    ranks.run(2, train_on_ranks, plan_run(folder / "run", folder / "data", SETTINGS, world=2), seconds=300)
    return folder


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "cluster", 2) as here:
        yield here


def submit(here: Cluster, folder: Path, data: Path, *more: str, flags: Sequence[str] = ()) -> str:
    """A training job, one rank a node, with ``more`` settings and ``flags`` of sbatch; its number."""
    words = ["--recipe", "demo", "--backbone", "VIT-S", "--data", str(data), "--out", str(folder / "run")]
    words += set_words(*SETTINGS, *more)
    export = f"--export=ALL,MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db"
    return here.submit(
        ROOT, f"--nodes={len(here.nodes)}", f"--output={folder}/job.out", export, *flags, "slurm/train.sbatch", *words
    )


def wait_for_steps(folder: Path, steps: int, seconds: float = 120, run: str = "run") -> None:
    """Until a run has taken so many."""
    log, end = folder / run / "log.jsonl", time.monotonic() + seconds
    while not log.is_file() or len(log.read_text().splitlines()) < steps:
        assert time.monotonic() < end, (folder / "job.out").read_text() if (folder / "job.out").is_file() else "no output"
        time.sleep(0.05)


def assert_as_undisturbed(folder: Path, undisturbed: Path, steps: int = EPOCHS) -> None:
    runs = [RunFolder(each / "run") for each in (undisturbed, folder)]
    assert newest_sound(runs[1])[1] == []
    expected, weights = (safetensors.torch.load_file(run.checkpoint(None) / WEIGHTS) for run in runs)
    assert all(torch.equal(expected[name], weights[name]) for name in expected | weights)
    assert read_json_lines(runs[1].log_file) == read_json_lines(runs[0].log_file)
    printed = (folder / "job.out").read_text()
    assert any(f"from step {step}" in printed for step in range(20, steps)), "it went on from a checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "node", "mend"), [("power_off", "node2", "boot"), ("power_off", "node1", "boot"), ("cut", "node2", "join")]
)
def test_a_lost_node_costs_no_more_than_steps(
    two_nodes: Cluster, undisturbed: Path, tmp_path: Path, strike: str, node: str, mend: str
) -> None:
    """``node1`` is the one that the batch script runs on."""
    job = submit(two_nodes, tmp_path, undisturbed / "data")
    wait_for_steps(tmp_path, 25)
    getattr(two_nodes, strike)(node)
    two_nodes.wait_for_job(job, "PENDING", 60, restarts=1)
    getattr(two_nodes, mend)(node)
    two_nodes.wait_for_job(job, "COMPLETED", 180, restarts=1)
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_node_that_is_back_before_slurm_has_seen_it_down(two_nodes: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    job = submit(two_nodes, tmp_path, undisturbed / "data")
    wait_for_steps(tmp_path, 25)
    two_nodes.crash("node2")
    two_nodes.boot("node2")
    two_nodes.wait_for_job(job, "COMPLETED", 240, restarts=1)
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_before_its_time_limit_a_job_saves_and_waits_for_more(two_nodes: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """The batch shell gets the signal of ``--signal=B:USR1`` by hand: Slurm looks at time limits every 30 s only."""
    job = submit(two_nodes, tmp_path, undisturbed / "data")
    wait_for_steps(tmp_path, 25)
    two_nodes.run("scancel", "--batch", "--signal=USR1", job)
    two_nodes.wait_for_job(job, "COMPLETED", 180, restarts=1)
    assert_as_undisturbed(tmp_path, undisturbed)
    printed = (tmp_path / "job.out").read_text()
    assert "SIGUSR1: stopped at" in printed
    assert "the time limit is near; back into the queue" in printed


@pytest.mark.slow
def test_a_real_time_limit_is_no_end(ranks, two_nodes: Cluster, tmp_path: Path) -> None:
    """A minute for each turn of a run that takes longer. Slurm looks at time limits every 30 s, so 25 s before is 30 s before."""
    write_set(tmp_path / "data")
    epochs, settings = "train.epochs=2500", [*SETTINGS, "train.checkpoint_epochs=500"]
    ranks.run(2, train_on_ranks, plan_run(tmp_path / "whole/run", tmp_path / "data", [*settings, epochs], world=2), seconds=400)
    words = ["--time=1", "--signal=B:USR1@25"]
    job = submit(two_nodes, tmp_path, tmp_path / "data", epochs, "train.checkpoint_epochs=500", flags=words)
    two_nodes.wait_for_job(job, "COMPLETED", 500, restarts=1)
    assert_as_undisturbed(tmp_path, tmp_path / "whole", steps=2500)
    assert "SIGUSR1: stopped at" in (tmp_path / "job.out").read_text()


@pytest.mark.slow
def test_a_study_goes_back_into_the_queue_and_on(two_nodes: Cluster, tmp_path: Path) -> None:
    """Its node is lost in its first run; before its time limit (a signal by hand, as above) it waits for more in its second."""
    data, out = write_set(tmp_path / "data"), tmp_path / "study"
    settings = ", ".join(f"'{each}'" for each in [*SETTINGS[:-1], "train.checkpoint_epochs=20"])
    (tmp_path / "study.yaml").write_text(
        f"recipe: demo\ndata: {data}\ndeepspeed_config: zero1_fp32\nseeds: [0, 1]\nset: [{settings}]\n"
        "runs: {VIT-S: {backbone: VIT-S}}\n"
    )
    export = f"--export=ALL,MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/mlflow.db"
    words = ["slurm/study.sbatch", str(tmp_path / "study.yaml"), "--out", str(out)]
    job = two_nodes.submit(ROOT, "--nodes=1", "--nodelist=node1", f"--output={tmp_path}/job.out", export, *words)

    wait_for_steps(tmp_path, 45, run="study/VIT-S-0")
    two_nodes.power_off("node1")
    two_nodes.wait_for_job(job, "PENDING", 60, restarts=1)
    two_nodes.boot("node1")
    wait_for_steps(tmp_path, 45, run="study/VIT-S-1")
    two_nodes.run("scancel", "--batch", "--signal=USR1", job)
    two_nodes.wait_for_job(job, "COMPLETED", 240, restarts=2)
    printed = (tmp_path / "job.out").read_text()
    assert "1 of 2 runs are done; go on with" in printed
    assert printed.count("VIT-S-0: training took") == 1
    for run in ("VIT-S-0", "VIT-S-1"):
        assert [line["step"] for line in read_json_lines(out / run / "log.jsonl")] == list(range(1, EPOCHS + 1))
        assert RunFolder(out / run).metrics()["queries"] > 0
    assert "| VIT-S | 2 |" in (out / "report/study.md").read_text()


@pytest.mark.slow
def test_a_mistake_ends_the_job_at_once(two_nodes: Cluster, tmp_path: Path) -> None:
    words = ["slurm/train.sbatch", "--out", str(tmp_path / "x"), "--backbone", "VIT-X"]
    job = two_nodes.submit(ROOT, "--nodes=2", f"--output={tmp_path}/job.out", *words)
    with pytest.raises(RuntimeError, match=r"is FAILED \(2:0\), restarts 0"):
        two_nodes.wait_for_job(job, "COMPLETED", 60)
    assert "VIT-X" in (tmp_path / "job.out").read_text()


@pytest.mark.slow
def test_all_scripts_would_be_taken(two_nodes: Cluster) -> None:
    scripts = sorted((ROOT / "slurm").glob("*.sbatch"))
    assert scripts
    for script in scripts:
        two_nodes.run("sbatch", "--test-only", str(script), "--out", "x", folder=ROOT)


@pytest.mark.slow
def test_four_nodes_of_which_one_is_lost(ranks, tmp_path: Path) -> None:
    write_set(tmp_path / "data", identities=24)  # P = 12 over 4 ranks
    settings = [*SETTINGS, "train.batch_size=24"]
    ranks.run(4, train_on_ranks, plan_run(tmp_path / "whole/run", tmp_path / "data", settings, world=4), seconds=300)
    with cluster(tmp_path / "cluster", 4) as here:
        job = submit(here, tmp_path, tmp_path / "data", "train.batch_size=24")
        wait_for_steps(tmp_path, 25)
        here.power_off("node3")
        here.wait_for_job(job, "PENDING", 90, restarts=1)
        here.boot("node3")
        here.wait_for_job(job, "COMPLETED", 240, restarts=1)
    assert_as_undisturbed(tmp_path, tmp_path / "whole")
