"""A Slurm cluster of network namespaces on this machine: real slurmctld, slurmd and munged, nodes that lose power or network.

Every node is a process 1 of its own (PID, mount, UTS and network namespace) and dies with the process that started the cluster.
The controller's namespace holds the bridge between them, so nothing of the machine's own network is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
NETWORK = "10.88.0"  # seen inside of the cluster only
SLURMD_TIMEOUT = 5  # seconds until a silent node is down
CONFIG = """\
ClusterName=vmreid
SlurmctldHost=control({network}.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/control.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdLogFile={folder}/%n.log
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdTimeout={timeout}
SlurmdParameters=config_overrides
SlurmctldTimeout=30
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=10
KillWait=5
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=UNLIMITED State=UP
"""
FIRST_PROCESS = """\
mount -t proc proc /proc && hostname {name} && mount --bind {folder}/hosts /etc/hosts && mount -t tmpfs tmpfs /dev/shm
{daemons}
while :; do wait -n || sleep 1; done
"""


def missing() -> str:
    """Why no cluster can be here, with the way out; empty where one can."""
    if os.geteuid() != 0:
        return "a cluster of network namespaces needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)}: not installed; {INSTALL}"
    tried = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[Cluster]:
    """A cluster with all nodes idle, ended afterwards."""
    here = Cluster(folder, nodes)
    try:
        here.up()
        yield here
    finally:
        here.down()


class Cluster:
    """``node1`` to ``nodeN``. Times are limits in seconds; what takes longer is a ``TimeoutError``."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, [f"node{number}" for number in range(1, nodes + 1)]
        self._prefix = f"vmreid-{secrets.token_hex(3)}-"
        self._first: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> None:
        """Start the controller and all nodes."""
        (self.folder / "state").mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        addresses = {name: f"{NETWORK}.{10 + number}" for number, name in enumerate(self.nodes, 1)}
        hosts = {"localhost": "127.0.0.1", "control": f"{NETWORK}.1", **addresses}
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        lines = "\n".join(f"NodeName={name} NodeAddr={address} CPUs=2 RealMemory=4000" for name, address in addresses.items())
        text = CONFIG.format(network=NETWORK, folder=self.folder, timeout=SLURMD_TIMEOUT, nodes=lines)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self._namespace("control")
        self._ip("control", "link add hub type bridge")
        self._ip("control", f"addr add {NETWORK}.1/24 dev hub")
        self._ip("control", "link set hub up")
        munged = f"munged --foreground --force --key-file={key} --socket={self.folder}/munge.socket"
        munged += "".join(f" --{kind}-file={self.folder}/munged.{kind}" for kind in ("pid", "seed", "log"))
        self._start("control", f"{munged} &\nuntil [ -S {self.folder}/munge.socket ]; do sleep 0.05; done\nslurmctld -D &")
        for name in self.nodes:
            self.boot(name)
        for name in self.nodes:
            self.wait_for_node(name, "IDLE", 30)

    def down(self) -> None:
        """End what was started, and nothing else."""
        for name in list(self._first):
            self._kill(name)
            subprocess.run(["ip", "netns", "delete", self._prefix + name], capture_output=True)

    def boot(self, node: str) -> None:
        """Give a node without power its power, as at the first time."""
        number = self.nodes.index(node) + 1
        self._namespace(node)
        self._ip("control", f"link add {node} type veth peer name eth0 netns {self._prefix}{node}")
        self._ip("control", f"link set {node} master hub up")
        self._ip(node, f"addr add {NETWORK}.{10 + number}/24 dev eth0")
        self._ip(node, "link set eth0 up")
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd -D -b &")

    def power_off(self, node: str) -> None:
        """Its network goes first, so that no peer hears of the end of its processes."""
        self.cut(node)
        self._kill(node)
        self._ip("control", f"link delete {node}")
        subprocess.run(["ip", "netns", "delete", self._prefix + node], check=True)

    def crash(self, node: str) -> None:
        """Kill all its processes; its peers see their connections closed."""
        self._kill(node)
        self._ip("control", f"link delete {node}")
        subprocess.run(["ip", "netns", "delete", self._prefix + node], check=True)

    def cut(self, node: str) -> None:
        """Take its network away; its processes live on."""
        self._ip("control", f"link set {node} down")

    def join(self, node: str) -> None:
        """Give the network back."""
        self._ip("control", f"link set {node} up")

    def run(self, *words: str, folder: Path | None = None) -> str:
        """What a command of Slurm's prints, such as ``sbatch``, as a user of the controller's machine."""
        command = ["ip", "netns", "exec", self._prefix + "control", *words]
        done = subprocess.run(command, cwd=folder, env=self._environment(), capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, folder: Path, *words: str) -> str:
        """``sbatch`` in a folder; the job's number."""
        return self.run("sbatch", "--parsable", *words, folder=folder)

    def wait_for_job(self, job: str, state: str, seconds: float, restarts: int = 0) -> dict[str, str]:
        """What Slurm says of a job once it is in a state and was started again so often. Another end is a ``RuntimeError``."""
        end, ended = time.monotonic() + seconds, 0
        while True:
            fields = dict(word.split("=", 1) for word in self.run("scontrol", "-o", "show", "job", job).split() if "=" in word)
            if fields["JobState"] == state and int(fields["Restarts"]) >= restarts:
                return fields
            ended = ended + 1 if fields["JobState"] in ENDED else 0  # a job on its way back into the queue shows one too
            if ended > 12 or time.monotonic() > end:
                kind = RuntimeError if ended > 12 else TimeoutError
                raise kind(
                    f"job {job} is {fields['JobState']} ({fields['ExitCode']}), restarts {fields['Restarts']}, not {state}"
                )
            time.sleep(0.25)

    def wait_for_node(self, node: str, state: str, seconds: float) -> None:
        """Until Slurm sees a node in a state, such as ``IDLE`` or ``DOWN``."""
        end = time.monotonic() + seconds
        seen = ""
        while not seen.startswith(state):
            if time.monotonic() > end:
                raise TimeoutError(f"{node} is {seen or 'unknown'} after {seconds} s, not {state}; logs: {self.folder}")
            time.sleep(0.1)
            with contextlib.suppress(RuntimeError):  # the controller may not answer yet
                seen = self.run("sinfo", "-h", "-n", node, "-o", "%T").upper()

    def _namespace(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._prefix + name], check=True)
        self._ip(name, "link set lo up")

    def _ip(self, name: str, words: str) -> None:
        subprocess.run(["ip", "-n", self._prefix + name, *words.split()], check=True)

    def _start(self, name: str, daemons: str) -> None:
        script = FIRST_PROCESS.format(name=name, folder=self.folder, daemons=daemons)
        words = [
            "ip",
            "netns",
            "exec",
            self._prefix + name,
            "unshare",
            *["--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"],
        ]
        with (self.folder / f"{name}.out").open("ab") as out:
            self._first[name] = subprocess.Popen(
                [*words, "bash", "-c", script], env=self._environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                preexec_fn=_die_with_parent,
            )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": "/root", "SLURM_CONF": str(self.folder / "slurm.conf")}

    def _kill(self, name: str) -> None:
        """All of a node: its first process goes, so the kernel ends what lives in its PID namespace."""
        first = self._first.pop(name, None)
        if first:
            first.kill()
            first.wait()
            end = time.monotonic() + 10
            while subprocess.run(["ip", "netns", "pids", self._prefix + name], capture_output=True).stdout.split():
                if time.monotonic() > end:
                    raise TimeoutError(f"{name}: processes do not end")
                time.sleep(0.05)


def _die_with_parent() -> None:
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
