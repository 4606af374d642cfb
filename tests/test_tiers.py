"""Tests are sorted: slow ones by folder, and those that start many processes onto one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RANK_ROOMS, SLOW_ROOMS, TESTS, pytest_itemcollected, worker_group


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("tests/parallel/test_queries.py", "parallel"),
        ("tests/families/test_round_trip.py", "families"),
        ("tests/families/test_direct.py", "families"),
        ("tests/traces/test_traces.py", "traces"),
        ("tests/gpu_path/test_training.py", "parallel"),
        ("tests/system/test_ray.py", "parallel"),
        ("tests/system/test_generate.py", "engine"),
        ("tests/system/test_slurm_train.py", "slurm"),
        ("tests/system/test_slurm_generate.py", "slurm"),
        ("tests/logprobs/test_vocab_parallel.py", "parallel"),
        ("tests/system/test_objectives.py", "tests/system/test_objectives.py"),
        ("tests/objectives/test_figures.py", "tests/objectives/test_figures.py"),
    ],
)
def test_files_that_start_many_processes_share_a_worker(file: str, group: str) -> None:
    assert worker_group(file) == group


def test_the_rooms_are_there() -> None:
    assert {path.name for path in TESTS.iterdir()} >= {*SLOW_ROOMS, *RANK_ROOMS}


@pytest.mark.parametrize("room", ["objectives", "system"])
def test_a_room_is_slow_or_fast(room: str) -> None:
    class Pretended:
        def __init__(self) -> None:
            self.path = TESTS / room / Path(__file__).name
            self.marks: list[str] = []

        def add_marker(self, mark: pytest.MarkDecorator) -> None:
            self.marks.append(mark.name)

    item = Pretended()
    pytest_itemcollected(item)  # type: ignore[arg-type]
    assert item.marks == (["slow"] if room == "system" else [])
