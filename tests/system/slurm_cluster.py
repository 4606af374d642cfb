"""A real Slurm of several nodes on this one machine, for tests of the `slurm/*.sub` files.

Own configuration, own authentication socket, own ports: nothing of the machine's own Slurm, if it
has one, is touched. Nodes share the machine, so tell them apart by SLURMD_NODENAME.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_gdpo.launch.ports import free_port

PACKAGES = ("slurm-wlm", "munge")
READY_SECONDS = 30.0
INSTALL_SECONDS = 300.0
FINISHED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
)


def install() -> None:
    """Have the daemons here.

    Raises:
        RuntimeError: they are not, and cannot be installed.
    """
    if shutil.which("slurmctld") and shutil.which("munged"):
        return
    remedy = f"install them: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(f"these tests need slurmctld, slurmd and munged; {remedy}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *command],
            env=quiet,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"apt-get {command[0]} failed: {done.stderr[-500:]}; {remedy}")


def _ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster; its nodes are n1, n2, ..."""

    directory: Path
    environment: dict[str, str]
    """Environment with which Slurm's commands find it."""

    def run(self, *command: str) -> str:
        """One of Slurm's commands; returns what it prints.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def sbatch(self, *arguments: str) -> int:
        """Submit a job; returns its number."""
        return int(self.run("sbatch", "--parsable", *arguments).split(";")[0])

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` tells: JobState, ExitCode, Restarts, ..."""
        fields = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def finish(self, number: int, seconds: float) -> dict[str, str]:
        """Wait until a job has ended for good.

        Raises:
            AssertionError: it has not in that time.
        """
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            found = self.job(number)
            if found["JobState"] in FINISHED:
                return found
            time.sleep(0.2)
        raise AssertionError(f"job {number} is still {self.job(number)['JobState']}")


def _write_configuration(
    directory: Path, munge_socket: Path, nodes: int, cpus: int, gpus: int
) -> Path:
    controller, *daemons = _ports(1 + nodes)
    lines = [
        "ClusterName=test",
        "SlurmctldHost=localhost(127.0.0.1)",
        f"SlurmctldPort={controller}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={munge_socket}",
        "CredType=cred/munge",
        f"StateSaveLocation={directory / 'state'}",
        f"SlurmdSpoolDir={directory / 'spool-%n'}",
        f"SlurmctldPidFile={directory / 'slurmctld.pid'}",
        f"SlurmdPidFile={directory / 'slurmd-%n.pid'}",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "AccountingStorageType=accounting_storage/none",
        "JobAcctGatherType=jobacct_gather/none",
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        "ReturnToService=2",
        "KillWait=5",
        "MpiDefault=none",
        "JobRequeue=1",
    ]
    gres = []
    for number, port in enumerate(daemons, start=1):
        own = f" Gres=gpu:{gpus}" if gpus else ""
        lines.append(
            f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={cpus} RealMemory=16000 State=UNKNOWN{own}"
        )
        for gpu in range(gpus):
            # A device that exists: a bare count makes the node invalid.
            device = directory / f"gpu{gpu}"
            if not device.exists():
                os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
            gres.append(f"NodeName=n{number} Name=gpu File={device}")
    lines.append(f"PartitionName=all Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP")
    path = directory / "slurm.conf"
    path.write_text("\n".join(lines) + "\n")
    (directory / "gres.conf").write_text("".join(line + "\n" for line in gres))
    return path


def _start_munge(directory: Path, own: Path, started: contextlib.ExitStack) -> None:
    key = own / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for path in (own, key):
        shutil.chown(path, "munge", "munge")
    own.chmod(0o755)
    options = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid"}
    options |= {"seed-file": "seed"}
    command = [f"--{name}={own / file}" for name, file in options.items()]
    # --force: it does not like its files below a directory that all may write to.
    munged = str(shutil.which("munged"))
    _daemon([munged, "--foreground", "--force", *command], directory, os.environ, started, "munge")


def _daemon(
    command: list[str],
    directory: Path,
    environment: dict[str, str] | os._Environ[str],
    started: contextlib.ExitStack,
    user: str | None = None,
) -> None:
    log = started.enter_context((directory / f"{Path(command[0]).name}.log").open("a"))
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=dict(environment), user=user, start_new_session=True
    )

    def end() -> None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    started.callback(end)


@contextlib.contextmanager
def slurm_cluster(
    directory: Path, *, nodes: int = 2, cpus: int = 8, gpus: int = 0
) -> Iterator[SlurmCluster]:
    """Start a cluster, and end it with all its jobs.

    Args:
        directory: empty; for configuration, state and logs.
        nodes: how many.
        cpus: of each node, whatever the machine has.
        gpus: of each node; devices that only look like some.

    Raises:
        RuntimeError: Slurm cannot be installed or does not come up.
    """
    install()
    directory.chmod(0o755)
    for name in ("state", *(f"spool-n{number}" for number in range(1, nodes + 1))):
        (directory / name).mkdir()
    # Not below `directory`, which may belong to root alone: munged runs as a separate user.
    munge = Path(tempfile.mkdtemp(prefix="munge-", dir="/tmp"))
    configuration = _write_configuration(directory, munge / "socket", nodes, cpus, gpus)
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = own | {"SLURM_CONF": str(configuration)}
    with contextlib.ExitStack() as started:
        started.callback(shutil.rmtree, munge, ignore_errors=True)
        _start_munge(directory, munge, started)
        _wait_for((munge / "socket").exists, directory)
        _daemon([str(shutil.which("slurmctld")), "-D", "-i"], directory, environment, started)
        for number in range(1, nodes + 1):
            daemon = [str(shutil.which("slurmd")), "-D", "-N", f"n{number}"]
            _daemon(daemon, directory, environment, started)
        cluster = SlurmCluster(directory, environment)
        _wait_for(lambda: _idle(cluster) == nodes, directory)
        try:
            yield cluster
        finally:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                cluster.run("scancel", "--user=root")
                _wait_for(lambda: not cluster.run("squeue", "--noheader").strip(), directory)


def _idle(cluster: SlurmCluster) -> int:
    try:
        states = cluster.run("sinfo", "--noheader", "--Node", "--format=%T").split()
    except AssertionError:  # the controller is not up yet
        return 0
    return states.count("idle")


def _wait_for(condition: Callable[[], bool], directory: Path) -> None:
    limit = time.monotonic() + READY_SECONDS
    while time.monotonic() < limit:
        if condition():
            return
        time.sleep(0.1)
    logs = "\n".join(
        f"{path.name}: {path.read_text(errors='replace')[-800:]}"
        for path in sorted(directory.glob("*.log"))
    )
    raise RuntimeError(f"Slurm does not come up:\n{logs}")
