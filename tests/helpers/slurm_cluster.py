"""A SLURM of one node on this machine, with a configuration, ports and a key of its own, for tests."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
#: Where Debian puts daemons; not on every user's PATH.
_SBIN = "/usr/sbin:/sbin"

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class NotStartable(Exception):
    """SLURM cannot run here; the message says why."""


class Cluster:
    """Commands of a running cluster.

    Attributes
    ----------
    environ : dict of str to str
        Environment in which SLURM's own commands reach this cluster, and no other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([os.environ.get("PATH", ""), _SBIN])
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environ = {**inherited, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words: str) -> str:
        """Run one of SLURM's commands, and give what it says."""
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stderr}")
        return done.stdout.strip()

    def states(self, job: str) -> dict[str, str]:
        """States of a job's tasks (``"0"``, ``"1"``; ``""`` for a job that is no array)."""
        said = self.run("scontrol", "--oneliner", "show", "job", job)
        found = [dict(f.partition("=")[::2] for f in line.split()) for line in said.splitlines()]
        return {record.get("ArrayTaskId", ""): record["JobState"] for record in found}

    def wait(self, until: Callable[[], object], seconds: float, what: str) -> None:
        """Wait for a condition; TimeoutError, with the daemons' last words, where it does not come true."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{_last_words(self.folder)}")
            time.sleep(0.2)


@contextmanager
def cluster(folder: Path, *, cpus: int = 2, memory: int = 8192) -> Iterator[Cluster]:
    """Run munged, slurmctld and slurmd of this user while the body runs.

    Parameters
    ----------
    folder : Path
        For configuration, key, state and logs.
    cpus, memory : int
        What the node is said to have; memory in MiB.

    Raises
    ------
    NotStartable
        Where SLURM is not installed, this is not root, or the daemons do not come up.
    """
    missing = [p for p in PROGRAMS if not shutil.which(p, path=f"{os.environ.get('PATH', '')}:{_SBIN}")]
    if missing:
        raise NotStartable(
            f"not installed: {', '.join(missing)} (Debian: slurmctld, slurmd, slurm-client, munge)"
        )
    if os.geteuid() != 0:
        raise NotStartable("slurmd starts jobs as their users, which takes root")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    text = _CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(2), cpus=cpus, memory=memory)
    (folder / "slurm.conf").write_text(text)
    one, munge = Cluster(folder), [f"--{n}-file={folder}/munge.{n}" for n in ("key", "pid", "log", "seed")]
    with contextlib.ExitStack() as stack:
        # --force: the folder of a test is closed to other users, which munged takes for a mistake.
        stack.enter_context(
            _daemon(one, "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        )
        _ready(one, lambda: (folder / "munge.socket").exists(), "munged")
        stack.enter_context(_daemon(one, "slurmctld", "-D", "-c"))
        stack.enter_context(_daemon(one, "slurmd", "-D", "-c"))
        _ready(one, lambda: "idle" in one.run("sinfo", "--noheader", "--format=%T"), "slurmctld and slurmd")
        yield one


def _ready(one: Cluster, until: Callable[[], object], name: str) -> None:
    def answered() -> object:
        try:
            return until()
        except RuntimeError:  # the controller does not answer yet
            return False

    try:
        one.wait(answered, 30, f"{name} to start")
    except TimeoutError as error:
        raise NotStartable(str(error)) from error


@contextmanager
def _daemon(one: Cluster, program: str, *words: str) -> Iterator[None]:
    found = shutil.which(program, path=one.environ["PATH"])
    assert found is not None
    with (one.folder / f"{program}.out").open("wb") as log:
        process = subprocess.Popen(
            [found, *words], env=one.environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _last_words(folder: Path) -> str:
    logs = sorted(folder.glob("*.out"))
    return "\n".join(f"{log.name}: ..." + log.read_text(errors="replace")[-1500:] for log in logs)
