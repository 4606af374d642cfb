"""What can be told of Ray without Ray: refusals, sizes, and which rows go where."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator

import pytest

from nemo_gdpo.config.generation import RayConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation import ray_cluster
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.ray_cluster import Cluster, check_size, check_version, connect
from nemo_gdpo.generation.ray_engine import Work, key_of
from nemo_gdpo.generation.ray_worker import model_files
from nemo_gdpo.generation.types import Completed, Request, SamplingPoint


def _requests(count: int) -> list[Request]:
    return [
        Request(f"p{n}", "text", (1, 2), SamplingPoint(), (n,), max_tokens=4, stop_token_ids=(0,))
        for n in range(count)
    ]


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if Ray were installed; whoever comes as far as importing it fails."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == "ray" else found(name)
    )
    # What `connect` sets in the environment goes with this.
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "token")
    yield


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="has no Ray; run `make python-generation`"):
        connect(RayConfig(), 1)


@pytest.mark.usefixtures("with_ray")
class TestAddress:
    @pytest.mark.parametrize("address", ["somewhere", "host:", ":1", "host:port"])
    def test_is_auto_or_host_and_port(self, address: str) -> None:
        with pytest.raises(UserError, match="is neither auto nor HOST:PORT"):
            connect(RayConfig(address=address), 1)

    def test_no_server_answers(self) -> None:
        with socket.socket() as taken:  # bound and not listening
            taken.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(UserError, match=f"nothing answers at {address} .*ray start --head"):
                connect(RayConfig(address=address), 1)

    def test_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            waits: list[float] = []

            def listen_at_last(seconds: float) -> None:
                waits.append(seconds)
                if len(waits) == 2:
                    taken.listen()

            monkeypatch.setattr(time, "sleep", listen_at_last)
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(ModuleNotFoundError, match="ray"):  # got past it
                connect(RayConfig(address=address, join_timeout=60.0), 1)
            assert len(waits) == 2


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_directory_too_long_for_sockets_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/" + "t" * 38)
    with pytest.raises(UserError, match=f"{name}=.* is too long"):
        ray_cluster.check_temporary_directory()
    monkeypatch.setenv(name, "/" + "t" * 37)
    ray_cluster.check_temporary_directory()


class TestSize:
    def test_an_engine_stays_on_one_node(self) -> None:
        # 6 GPUs a node: one engine of 4 each, though 12 GPUs would make three.
        cluster = Cluster(gpus=(6, 6), cpus=64)
        check_size(cluster, 2, 4)
        with pytest.raises(UserError, match=r"4 GPUs of one node, and 2 fit .*12 GPUs"):
            check_size(cluster, 3, 4)
        with pytest.raises(UserError, match="8 GPUs of one node, and 0 fit"):
            check_size(cluster, 1, 8)

    def test_engine_on_a_cpu_holds_the_complete_model(self) -> None:
        cluster = Cluster(gpus=(0, 0), cpus=3)
        check_size(cluster, 3, 1)
        with pytest.raises(UserError, match="one CPU, and 3 fit"):
            check_size(cluster, 4, 1)
        with pytest.raises(UserError, match="tensor_parallel_size=2: the Ray cluster has no GPUs"):
            check_size(cluster, 1, 2)

    def test_resources_of_an_engine(self) -> None:
        assert Cluster((8,), 64).resources(4) == {"num_cpus": 1, "num_gpus": 4}
        assert Cluster((0,), 64).resources(1) == {"num_cpus": 1, "num_gpus": 0}


def test_workers_of_another_version_are_refused() -> None:
    with pytest.raises(UserError, match=r"node n7 has nemo_gdpo 0\.0\.0, and this is"):
        check_version({"nemo_gdpo": "0.0.0"}, "node n7")


def test_a_model_that_a_node_does_not_see_is_refused() -> None:
    with pytest.raises(UserError, match="/none is not a directory on"):
        model_files("/none")


class TestWork:
    def test_batches_are_half_a_share_and_never_below_the_least(self) -> None:
        work = Work(_requests(100), RayConfig(batch_size=10))
        sizes = []
        while batch := work.take(engines=2):
            sizes.append(len(batch))
        # ceil(100 / 4), ceil(75 / 4), ceil(56 / 4), ceil(42 / 4), ceil(31 / 4) < 10, ...
        assert sizes == [25, 19, 14, 11, 10, 10, 10, 1]

    def test_a_row_counts_once(self) -> None:
        (request,) = _requests(1)
        work = Work([request], RayConfig())
        assert work.unfinished
        assert work.finish(Completed(request, ()))
        assert not work.finish(Completed(request, ()))
        assert not work.unfinished

    def test_the_same_prompt_at_another_point_is_another_row(self) -> None:
        (request,) = _requests(1)
        other = Request.from_dict({**request.to_dict(), "sampling": {"temperature": 0.5}})
        assert key_of(request) != key_of(other)

    def test_lost_rows_go_first_and_in_small_batches(self) -> None:
        work = Work(_requests(100), RayConfig(batch_size=10))
        lost = work.take(engines=1)
        assert len(lost) == 50
        work.take_back(lost, "killed")
        assert work.take(engines=1) == lost[:10]

    def test_a_row_that_kills_its_engines_ends_the_run(self) -> None:
        work = Work(_requests(3), RayConfig(batch_size=2, retries=1))
        work.take_back(work.take(engines=1), "killed")
        with pytest.raises(GenerationError, match=r"prompt 'p0' was with 2 engines.*: of memory"):
            work.take_back(work.take(engines=1), "out of memory: of memory")
