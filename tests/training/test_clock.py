"""Wall time by stage, over starts; a killed start keeps what it noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.training import clock as clock_module
from nemo_gdpo.training.clock import CHECKPOINTS, MODEL, TRAINING, RunClock, by_stage


class Hands:
    """`time.perf_counter` as a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    found = Hands()
    monkeypatch.setattr(clock_module, "time", found)
    return found


def written(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "starts.json").read_text())["starts"]
    return found


def test_an_inner_stage_stops_the_outer(hands: Hands) -> None:
    clock = RunClock()
    hands.now += 2.0
    clock.enter(MODEL)
    hands.now += 3.0
    clock.enter(TRAINING)
    hands.now += 10.0
    with clock.within(CHECKPOINTS):
        hands.now += 4.0
    hands.now += 1.0
    assert clock.totals() == {"starting": 2.0, "model": 3.0, "training": 11.0, "checkpoints": 4.0}
    assert clock.latest[CHECKPOINTS] == 4.0


def test_a_failing_stage_gives_back(hands: Hands) -> None:
    clock = RunClock()
    with pytest.raises(RuntimeError), clock.within(CHECKPOINTS):
        hands.now += 4.0
        raise RuntimeError
    hands.now += 1.0
    assert clock.totals() == {"starting": 1.0, "checkpoints": 4.0}


def test_starts_add_up(hands: Hands, tmp_path: Path) -> None:
    killed = RunClock()
    killed.keep_in(tmp_path, world_size=2)
    killed.enter(TRAINING)
    killed.note(0)
    hands.now += 70.0
    killed.note(7)  # a minute has passed
    hands.now += 30.0
    killed.note(9)  # not written: it is killed before a minute has passed again
    (first,) = written(tmp_path)
    assert (first["first_step"], first["steps"], first["ended"]) == (0, 7, None)
    assert (first["seconds"]["training"], first["world_size"]) == (70.0, 2)

    second = RunClock()
    second.keep_in(tmp_path, world_size=1)
    second.enter(TRAINING)
    second.note(5)
    hands.now += 20.0
    second.note(10, ended="done")
    starts = written(tmp_path)
    assert [s["ended"] for s in starts] == [None, "done"]
    assert (starts[1]["first_step"], starts[1]["steps"]) == (5, 10)
    assert by_stage(starts)["training"] == 90.0


def test_a_full_disk_ends_nothing(
    hands: Hands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clock_module, "write_json", full)
    clock = RunClock()
    clock.keep_in(tmp_path, world_size=1)
    clock.note(3, ended="done")
    assert clock.starts()[-1]["steps"] == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": [{"seconds": 1}]}', '{"starts": 1}'])
def test_a_damaged_file_is_begun_anew(hands: Hands, tmp_path: Path, content: str) -> None:
    (tmp_path / "starts.json").write_text(content)
    clock = RunClock()
    clock.keep_in(tmp_path, world_size=1)
    assert len(written(tmp_path)) == 1
