"""The job scripts, run for real against a stand-in for Slurm: ``srun``, ``scontrol`` and python are fakes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).parents[2] / "slurm"
JOBS = sorted(SLURM.glob("*.sbatch"))
SCRIPTS = JOBS + sorted(SLURM.glob("*.sh"))
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
EMPTY_SITE = {"PARTITION": '""', "ACCOUNT": '""', "MODULES": "()", "CONTAINER": "()", "SRUN": "()", "INTERFACE": '""'}

FAKES = {
    "bin/scontrol": """
        echo "$*" >>record/scontrol
        if [[ $* == "show config" ]]; then echo "SlurmdTimeout = 2 sec"; else printf "node07\\nnode08\\nnode09\\n"; fi""",
    "bin/srun": """
        printf '%s\\0' "$@" >record/srun; env -0 >record/environment
        while [[ $1 == -* ]]; do shift; done
        eval "$FAKE_SRUN" """,
    ".venv/bin/python": 'printf \'%s\\0\' "$@" >record/python; eval "$FAKE_RANK"',
}
TWO_RANKS = """ # as srun with --kill-on-bad-exit: it returns the highest code
    SLURM_PROCID=0 "$@" & first=$!
    SLURM_PROCID=1 "$@"; code=$?
    kill -TERM $first; wait $first; first_code=$?
    exit $((first_code > code ? first_code : code))"""


class Cluster:
    """A folder with the scripts and the fakes, from which jobs are submitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(SLURM, folder / "slurm")
        (folder / "record").mkdir()
        for name, text in FAKES.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{text}\n")
            path.chmod(0o755)
        self.edit_site(**EMPTY_SITE)

    def edit_site(self, **values: str) -> None:
        """Set values of site.sh, as its reader would."""
        path = self.folder / "slurm/site.sh"
        text = path.read_text()
        for name, value in values.items():
            text, count = re.subn(rf"^SITE_{name}=.*?(?=  +# EDIT)", f"SITE_{name}={value}", text, flags=re.MULTILINE)
            assert count == 1, f"site.sh has no line SITE_{name} marked EDIT"
        path.write_text(text)

    def start(self, job: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a job script in the environment of a job with three nodes."""
        base = {
            "PATH": f"{self.folder}/bin:/usr/local/bin:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node[07-09]",
            "SLURM_JOB_PARTITION": "test",
            "SLURM_NTASKS": "1" if job in ("shards", "study") else "6",
            "FAKE_SRUN": 'exec "$@"',
            "FAKE_RANK": "exit 0",
        }
        command = ["bash", str(self.folder / "slurm" / f"{job}.sbatch"), *arguments]
        return subprocess.Popen(
            command, env=base | environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, job: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run a job script to its end: exit code and standard error."""
        process = self.start(job, *arguments, **environment)
        _, errors = process.communicate(timeout=30)
        return process.returncode, errors

    def record(self, name: str) -> list[str]:
        """What a fake was called with, argument by argument (``environment``: NAME=value lines)."""
        return (self.folder / "record" / name).read_text().split("\0")[:-1]

    @property
    def environment(self) -> dict[str, str]:
        """The environment that srun saw."""
        return dict(line.split("=", 1) for line in self.record("environment"))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (apt-get install shellcheck)")
def test_shellcheck_is_silent() -> None:
    found = subprocess.run([SHELLCHECK or "", *SCRIPTS], capture_output=True, text=True)
    assert found.stdout + found.stderr == ""


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_is_short_and_names_a_module_that_exists(job: Path) -> None:
    text = job.read_text()
    modules = re.findall(r"^run_ranks (\S+) \"\$@\"", text, flags=re.MULTILINE)
    assert len(modules) == 1
    assert importlib.util.find_spec(modules[0]) is not None
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("job", [path.stem for path in JOBS])
def test_arguments_arrive_unharmed(cluster: Cluster, job: str) -> None:
    arguments = ["--out", "runs/a b", "", "*", "$HOME", "it's", '"quoted"', "--set", "model.depth=8"]
    assert cluster.run(job, *arguments) == (0, "")
    assert cluster.record("python")[0] == "-m"
    assert cluster.record("python")[2:] == arguments


def test_srun_ends_all_ranks_when_one_fails_and_labels_their_lines(cluster: Cluster) -> None:
    cluster.run("train")
    assert {"--label", "--kill-on-bad-exit=1", "--wait=60"} <= set(cluster.record("srun"))


def test_ranks_meet_at_the_first_node(cluster: Cluster) -> None:
    cluster.run("train", RANK="3", WORLD_SIZE="8", LOCAL_RANK="3")
    seen = cluster.environment
    assert seen["MASTER_ADDR"] == "node07"
    assert seen["EXPECT_WORLD_SIZE"] == "6"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(seen), "a stale RANK would hide the one from srun"


def test_ports_are_ports_and_differ_between_jobs(cluster: Cluster) -> None:
    ports = []
    for job_id in ("1", "2", "3", "19999", "20001", "67043327"):
        cluster.run("train", SLURM_JOB_ID=job_id)
        ports.append(int(cluster.environment["MASTER_PORT"]))
    assert all(1024 <= port <= 65535 for port in ports)
    assert len(set(ports[:4])) == 4


def test_threads_follow_the_cpus_of_a_task(cluster: Cluster) -> None:
    cluster.run("train", SLURM_CPUS_PER_TASK="12")
    assert cluster.environment["OMP_NUM_THREADS"] == "12"
    assert cluster.environment["SRUN_CPUS_PER_TASK"] == "12"
    cluster.run("train")
    assert cluster.environment["OMP_NUM_THREADS"] == "1"
    assert "SRUN_CPUS_PER_TASK" not in cluster.environment


@pytest.mark.parametrize("job", [path.stem for path in JOBS])
def test_exit_code_of_srun_is_the_jobs(cluster: Cluster, job: str) -> None:
    assert cluster.run(job, FAKE_SRUN="exit 7")[0] == 7


def test_exit_code_is_that_of_the_rank_that_failed_first(cluster: Cluster) -> None:
    code, _ = cluster.run("train", FAKE_SRUN=TWO_RANKS, FAKE_RANK="if ((SLURM_PROCID)); then exit 2; fi; exec sleep 20")
    assert code == 2
    assert not list(cluster.folder.glob(".first-failure*"))


def test_a_killed_rank_is_not_taken_for_a_success(cluster: Cluster) -> None:
    assert cluster.run("train", FAKE_RANK="kill -KILL $$")[0] == 128 + signal.SIGKILL


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_a_signal_to_the_batch_shell_reaches_the_rank(cluster: Cluster, name: str) -> None:
    rank = f'trap "touch record/came; exit 5" {name}; touch record/ready; for i in $(seq 500); do sleep 0.02; done'
    process = cluster.start("train", FAKE_RANK=rank)
    deadline = time.monotonic() + 20
    while not (cluster.folder / "record/ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, f"SIG{name}"))
    process.communicate(timeout=20)
    assert (cluster.folder / "record/came").exists()
    assert process.returncode == 5


def in_no_time(cluster: Cluster) -> None:
    """Let a job's own waiting take no time."""
    sleep = cluster.folder / "bin/sleep"
    sleep.write_text('#!/usr/bin/env bash\necho "sleep $*" >>record/scontrol\n')
    sleep.chmod(0o755)


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (1, 0, False),  # a rank said what is wrong
        (2, 0, False),
        (75, 0, False),  # stopped by somebody, not by the time limit's signal
        (137, 0, False),  # one rank was killed, its node lives
        (74, 0, True),  # another rank went without a word
        (74, 100, False),  # too often
    ],
)
def test_a_job_starts_again_only_where_it_can_go_on(cluster: Cluster, code: int, restarts: int, again: bool) -> None:
    in_no_time(cluster)
    ended, errors = cluster.run("train", FAKE_RANK=f"exit {code}", SLURM_RESTART_COUNT=str(restarts))
    asked = (cluster.folder / "record/scontrol").read_text().splitlines()
    assert ("requeue 4711" in asked) == again
    if again:
        assert asked.index("sleep 23") < asked.index("requeue 4711"), "Slurm has time to find the node down"
        assert "a rank was lost" in errors
    else:
        assert ended == code


def test_a_lost_node_takes_its_word_with_it(cluster: Cluster) -> None:
    in_no_time(cluster)
    cluster.run("train", FAKE_SRUN='exec timeout --signal=KILL 0.5 "$@"', FAKE_RANK="exec /bin/sleep 20")
    assert "requeue 4711" in (cluster.folder / "record/scontrol").read_text().splitlines()


@pytest.mark.parametrize("job", ["train", "study"])
def test_near_its_time_limit_a_job_saves_and_starts_again(cluster: Cluster, job: str) -> None:
    in_no_time(cluster)
    process = cluster.start(
        job, FAKE_RANK='trap "exit 75" USR1; touch record/ready; for i in $(seq 500); do /bin/sleep 0.02; done'
    )
    while not (cluster.folder / "record/ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=20)
    assert "the time limit is near; back into the queue" in errors
    assert "requeue 4711" in (cluster.folder / "record/scontrol").read_text().splitlines()


def test_a_job_that_starts_again_resumes(cluster: Cluster) -> None:
    cluster.run("train", "--out", "runs/x", SLURM_RESTART_COUNT="2")
    assert cluster.record("python")[2:] == ["--out", "runs/x", "--resume", "auto"]


def test_a_study_is_one_task_that_shares_out_the_cpus(cluster: Cluster) -> None:
    code, errors = cluster.run("study", SLURM_NTASKS="8")
    assert code == 2
    assert re.fullmatch(r"slurm: 8 tasks, but one starts the others; .*ranks: N in the study\n", errors)
    assert not (cluster.folder / "record/srun").exists()
    assert cluster.run("study", "study.yaml", "--out", "a b", SLURM_CPUS_PER_TASK="12") == (0, "")
    assert cluster.record("python")[1:] == ["launcher.study", "study.yaml", "--out", "a b"]
    assert "OMP_NUM_THREADS" not in cluster.environment


def test_shards_are_written_by_one_task(cluster: Cluster) -> None:
    code, errors = cluster.run("shards", SLURM_NTASKS="2")
    assert code == 2
    assert re.fullmatch(r"slurm: 2 tasks in one job, .*--array=1-8 .*\n", errors)
    assert not (cluster.folder / "record/srun").exists()


@pytest.mark.parametrize(
    ("first", "last", "step", "parts"),
    [(1, 3, 1, ["1/3", "2/3", "3/3"]), (0, 2, 1, ["1/3", "2/3", "3/3"]), (5, 9, 2, ["1/3", "2/3", "3/3"]), (7, 7, 1, ["1/1"])],
)
def test_each_task_of_an_array_writes_its_part(cluster: Cluster, first: int, last: int, step: int, parts: list[str]) -> None:
    seen = []
    for number in range(first, last + 1, step):
        array = {"ID": number, "MIN": first, "STEP": step, "COUNT": len(parts)}
        environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
        assert cluster.run("shards", "synthetic", "--out", "a b", **environment) == (0, "")
        words = cluster.record("python")
        assert words[2:-1] == ["synthetic", "--out", "a b", "--part"]
        seen.append(words[-1])
    assert seen == parts


def test_site_values_reach_the_job(cluster: Cluster) -> None:
    cluster.edit_site(
        PARTITION='"gpu"',
        MODULES="(gcc/13 cuda/12.8)",
        CONTAINER="(env INSIDE=1)",
        SRUN="(--mpi=none)",
        INTERFACE='"ib0"',
    )
    module = {"BASH_FUNC_module%%": '() { printf "%s\\n" "$@" >record/module; }'}
    path = f"{cluster.folder}/bin:{cluster.folder}/.venv/bin:/usr/bin:/bin"
    (cluster.folder / ".venv/bin/python").rename(cluster.folder / "bin/python3")
    code, errors = cluster.run("train", "--out", "a b", PATH=path, FAKE_RANK='exit "$INSIDE"', **module)
    assert code == 1, "the container's command stands in front of python"
    assert re.fullmatch(r"slurm: .*partition test, slurm/site.sh names gpu.*\n", errors)
    assert (cluster.folder / "record/module").read_text().split() == ["load", "gcc/13", "cuda/12.8"]
    assert cluster.environment["NCCL_SOCKET_IFNAME"] == cluster.environment["GLOO_SOCKET_IFNAME"] == "ib0"
    assert "--mpi=none" in cluster.record("srun")


def test_sourcing_the_site_sets_the_defaults_of_sbatch(cluster: Cluster) -> None:
    def exported() -> str:
        command = "source slurm/site.sh && env | grep ^SBATCH_ | sort || true"
        shell = ["bash", "--norc", "-c", command]
        return subprocess.run(shell, cwd=cluster.folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True).stdout

    assert exported() == ""
    cluster.edit_site(PARTITION='"gpu"', ACCOUNT='"p1"')
    assert exported() == "SBATCH_ACCOUNT=p1\nSBATCH_PARTITION=gpu\n"
