"""The Ray cluster that the engines run on: joined or started, and checked before it is used."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemo_gdpo import __version__
from nemo_gdpo.config.generation import RayConfig
from nemo_gdpo.errors import Stopped, UserError
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.ray_worker import worker_info
from nemo_gdpo.launch.signals import INTERACTIVE_SIGNALS

OBJECT_STORE_BYTES = 256 * 2**20
"""Object store of a cluster started here. Rows are small and leave it as soon as written."""
CONNECT_SECONDS = 5.0
POLL_SECONDS = 1.0
MAX_TMPDIR_LENGTH = 38
"""Characters that Ray's directory may have: a Unix socket's path has 107, the rest is Ray's."""
INFO_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Cluster:
    """Resources of the cluster."""

    gpus: tuple[int, ...]
    """GPUs of each node."""
    cpus: int
    """CPUs of all nodes together."""

    @property
    def on_gpus(self) -> bool:
        """Whether the engines run on GPUs; on a cluster without any they run on CPUs."""
        return sum(self.gpus) > 0

    def resources(self, tensor_parallel_size: int) -> dict[str, float]:
        """Resources that Ray sets aside for one engine."""
        return {"num_cpus": 1, "num_gpus": tensor_parallel_size if self.on_gpus else 0}

    def capacity(self, tensor_parallel_size: int) -> int:
        """Engines that fit; each stays on one node."""
        if not self.on_gpus:
            return self.cpus
        return sum(gpus // tensor_parallel_size for gpus in self.gpus)


def connect(config: RayConfig, tensor_parallel_size: int) -> Cluster:
    """Join the cluster (once a process), or start one, and see that the engines fit on it.

    Raises:
        UserError: Ray is not installed, nothing answers, or the cluster is too small.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            f"generation.backend=ray: {sys.executable} has no Ray; run `make python-generation`, "
            "or `pip install ray==2.60.0` in that environment"
        )
    limit = time.monotonic() + config.join_timeout
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if config.address is None and "RAY_AUTH_MODE" not in os.environ:
        # For this cluster only; otherwise Ray writes one into the home directory, for ever.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif config.address not in (None, "auto"):
        assert config.address is not None
        _wait_for_port(config.address, limit)
    import ray

    if not ray.is_initialized():
        _join(ray, config)
    cluster = _cluster_state(ray)
    while len(cluster.gpus) < config.nodes:
        if time.monotonic() > limit:
            raise UserError(
                f"generation.ray.nodes={config.nodes}: the Ray cluster has {len(cluster.gpus)} "
                f"after {config.join_timeout:.0f} s; see the others' logs, or lower it"
            )
        time.sleep(POLL_SECONDS)
        cluster = _cluster_state(ray)
    check_size(cluster, config.replicas, tensor_parallel_size)
    return cluster


def disconnect() -> None:
    """Leave the cluster; one that was started here ends."""
    import ray

    ray.shutdown()


@functools.cache
def cluster_info(cluster: Cluster) -> dict[str, str]:
    """Versions and devices (`engine_info`) where the engines will run.

    Raises:
        UserError: another version of this package, or no vLLM, is installed there.
    """
    import ray

    ask = ray.remote(num_cpus=1, num_gpus=1 if cluster.on_gpus else 0, max_retries=3)(worker_info)
    try:
        info: dict[str, str] = ray.get(ask.remote(), timeout=INFO_TIMEOUT_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise UserError(
            f"generation.ray.address: the cluster's Python cannot sample ({last_line(error)}); "
            "start Ray there with the generation environment of this version"
        ) from None
    except ray.exceptions.RayError as error:
        raise GenerationError(
            f"no worker of the Ray cluster answers ({last_line(error)})"
        ) from error
    check_version(info, "the Ray cluster")
    return {name: value for name, value in info.items() if name != "nemo_gdpo"}


def check_version(info: dict[str, str], where: str) -> None:
    """Refuse workers that run another version of this package.

    Raises:
        UserError: the versions differ.
    """
    if info["nemo_gdpo"] != __version__:
        raise UserError(
            f"{where} has nemo_gdpo {info['nemo_gdpo']}, and this is {__version__}; install the "
            "same version on every node"
        )


def _wait_for_port(address: str, limit: float) -> None:
    """Wait until something listens, at most until `limit`; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"generation.ray.address: {address} is neither auto nor HOST:PORT")
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
                return
        except (OSError, OverflowError) as error:
            if time.monotonic() > limit:
                raise UserError(
                    f"generation.ray.address: nothing answers at {address} ({error}); start Ray "
                    "there (`ray start --head --port=PORT`), or correct the address"
                ) from None
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep our signal handlers: Ray sets its own, and a signal must still end the run cleanly."""
    kept = {number: signal.getsignal(number) for number in INTERACTIVE_SIGNALS}
    try:
        yield
    except SystemExit:  # Ray's handler, in the moment before it is ours again
        raise Stopped("stopped by a signal before sampling began") from None
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _join(ray: Any, config: RayConfig) -> None:
    options: dict[str, Any] = {
        "logging_level": "ERROR",
        "log_to_driver": False,
        "configure_logging": False,
    }
    if config.address is None:
        check_temporary_directory()
        options |= {
            # One for each engine, however few this machine has: the engines share them.
            "num_cpus": max(config.replicas, os.cpu_count() or 1),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "address": "local",
        }
    else:
        options["address"] = config.address
    try:
        with _signals_kept():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        started = "start a cluster" if config.address is None else f"join {config.address}"
        raise UserError(
            f"generation.ray.address: Ray cannot {started} ({last_line(error)}); see that it runs "
            "there, with the same versions of Ray and Python, or set null to start one here"
        ) from error


def check_temporary_directory() -> None:
    """Refuse a directory whose name is too long; Ray itself takes RAY_TMPDIR, or TMPDIR, or /tmp.

    Raises:
        UserError: the name is too long.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name in os.environ:
            if len(os.environ[name]) > MAX_TMPDIR_LENGTH:
                raise UserError(
                    f"{name}={os.environ[name]} is too long for the names of Ray's sockets; export "
                    f"RAY_TMPDIR with {MAX_TMPDIR_LENGTH} characters at most, such as /tmp"
                )
            return


def _cluster_state(ray: Any) -> Cluster:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        gpus=tuple(int(node.get("GPU", 0)) for node in nodes),
        cpus=int(sum(node.get("CPU", 0) for node in nodes)),
    )


def check_size(cluster: Cluster, replicas: int, tensor_parallel_size: int) -> None:
    """Refuse more engines than fit.

    Raises:
        UserError: they do not fit.
    """
    if not cluster.on_gpus and tensor_parallel_size > 1:
        raise UserError(
            f"generation.tensor_parallel_size={tensor_parallel_size}: the Ray cluster has no GPUs, "
            "and on a CPU one process has the whole model; set 1"
        )
    capacity = cluster.capacity(tensor_parallel_size)
    if replicas > capacity:
        share = f"{tensor_parallel_size} GPUs of one node" if cluster.on_gpus else "one CPU"
        raise UserError(
            f"generation.ray.replicas={replicas}: each engine takes {share}, and {capacity} fit on "
            f"the Ray cluster ({len(cluster.gpus)} nodes, {sum(cluster.gpus)} GPUs, {cluster.cpus} "
            "CPUs); lower replicas or generation.tensor_parallel_size, or add nodes"
        )


def last_line(error: BaseException) -> str:
    """The last line of an error of Ray, which says what went wrong."""
    text = str(error).partition("Some common causes")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
