"""Joining the world of ranks and cutting it, over torch's fake process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.testing._internal.distributed.fake_pg import FakeStore

from nemo_gdpo.errors import UserError
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.training import mesh

WORLD = 8


class _Gpu:
    """What a mesh asks of a platform, with a GPU a rank and no GPU."""

    distributed_backend = "fake"

    def __init__(self) -> None:
        self.began_with: list[bool] = []

    def device(self, local_rank: int) -> torch.device:
        self.began_with.append(dist.is_initialized())
        return torch.device("cuda", local_rank)

    def device_identity(self) -> str | None:
        return None

    def settle_arithmetic(self) -> list[str]:
        return []

    def manual_seed(self, seed: int) -> None:
        del seed


class _Splits:
    """Counts what torch does to the world's communicator when a subgroup is made."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []

    def perform_nocolor_split(self, device: torch.device) -> None:
        self.devices.append(device)


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Splits]:
    """A world over a fake backend, in which torch's choice to split can be watched."""
    init, new_group, found = dist.init_process_group, dist.new_group, _Splits()

    def init_fake(backend: str, *, device_id: torch.device | None = None, **named: Any) -> None:
        init(backend, store=FakeStore(), rank=int(os.environ["RANK"]), world_size=WORLD, **named)
        # As `init_process_group(device_id=...)` does, which wants to see the device.
        dist.group.WORLD.bound_device_id = device_id

    def new_fake_group(*arguments: Any, **named: Any) -> Any:
        return new_group(*arguments, **{**named, "backend": "fake"})

    monkeypatch.setattr(dist, "init_process_group", init_fake)
    monkeypatch.setattr(dist, "new_group", new_fake_group)
    monkeypatch.setattr(distributed_c10d, "_get_split_source", lambda group: found)
    # Nothing comes from the others of a fake world.
    monkeypatch.setattr(dist, "all_gather_object", lambda found, own, group: None)
    yield found
    mesh.leave_world()


@pytest.mark.parametrize("rank", range(WORLD))
def test_no_rank_splits_the_world_when_the_mesh_is_cut(
    rank: int, splits: _Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members of a gloo subgroup would not split it, the others would: a hang on every cluster."""
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", WORLD)):
        monkeypatch.setenv(name, str(value))
    platform: Any = _Gpu()
    mesh.join_world(platform)
    made = mesh.build_mesh(ParallelLayout(tensor=2, pipeline=2, context=2), platform, seed=1)
    assert (made.rank, made.world_size, made.data_size) == (rank, WORLD, 1)
    assert splits.devices == []
    # NCCL takes the current device: it is selected before there is a group.
    assert platform.began_with[0] is False


class _FailingCpu(_Gpu):
    """Cannot start: without a device, or when the world is there already."""

    distributed_backend = "gloo"

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def device(self, local_rank: int) -> torch.device:
        if self.at == "device":
            raise UserError("no device")
        return torch.device("cpu")

    def settle_arithmetic(self) -> list[str]:
        assert dist.is_initialized()
        raise ValueError("no arithmetic")


@pytest.mark.parametrize("at", ["device", "arithmetic"])
def test_a_world_of_one_that_cannot_be_joined_leaves_nothing(at: str) -> None:
    """Whoever starts ranks from this process next would make them wait for a rank 0."""
    platform: Any = _FailingCpu(at)
    before = dict(os.environ)
    with pytest.raises(ValueError, match=f"no {at}"):
        mesh.join_world(platform)
    assert not dist.is_initialized()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (["gpu a", "gpu b"], None),
        ([None, None], None),  # ranks of a CPU share it
        (
            ["gpu a on n1", "gpu b on n1", "gpu a on n1"],
            "ranks 0 and 2 have one GPU between them (gpu a on n1); start no more ranks",
        ),
    ],
    ids=["own", "shared by right", "twice the same"],
)
def test_devices_of_all_ranks(found: list[str | None], told: str | None) -> None:
    problem = mesh.device_problem(found)
    assert problem is None if told is None else told in str(problem)
