"""The log of a rank: what it holds, over starts, and on a disk that is full."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.launch import rank_log
from nemo_gdpo.launch.rank_log import RankLog


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    rank_log.end()
    yield
    rank_log.end()


def records(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    text = (folder / f"rank_{rank:05d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_what_comes_before_the_file_is_kept(tmp_path: Path) -> None:
    rank_log.enter_stage("model")
    rank_log.record("opened")
    assert list(tmp_path.iterdir()) == []
    rank_log.open_log(tmp_path / "logs", rank=3, device="cpu")
    rank_log.record("loaded", level="warning")
    found = records(tmp_path / "logs", rank=3)
    assert [(r["level"], r["stage"], r["message"]) for r in found] == [
        ("info", "model", "start"),
        ("info", "model", "begins"),
        ("info", "model", "opened"),
        ("warning", "model", "loaded"),
    ]
    assert (found[0]["rank"], found[0]["device"], found[0]["pid"]) == (3, "cpu", os.getpid())
    assert found[0]["host"] == os.uname().nodename
    assert {"torch", "megatron-core"} <= found[0]["versions"].keys()
    assert found[0]["time"].endswith("Z")


def test_a_start_says_its_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    rank_log.open_log(tmp_path, rank=0)
    slurm = records(tmp_path)[0]["slurm"]
    assert (slurm["SLURM_JOB_ID"], slurm["SLURM_RESTART_COUNT"]) == ("4711", "2")
    assert "SLURM_PROCID" not in slurm


def test_the_next_start_appends_after_a_torn_line(tmp_path: Path) -> None:
    rank_log.open_log(tmp_path, rank=0)
    rank_log.end()
    with (tmp_path / "rank_00000.jsonl").open("a") as file:
        file.write('{"time": "20')
    rank_log.record("of the run before")
    rank_log.end()
    rank_log.open_log(tmp_path, rank=0)
    lines = (tmp_path / "rank_00000.jsonl").read_text().splitlines()
    assert lines[1] == '{"time": "20'
    assert [json.loads(lines[n])["message"] for n in (0, 2)] == ["start", "start"]
    assert len(lines) == 3


def test_warnings_go_there_and_not_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `quiet_libraries` does
        rank_log.open_log(tmp_path, rank=0)
        warnings.warn("the moon is full", UserWarning, stacklevel=1)
        rank_log.end()
        warnings.warn("nobody hears this", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
    (found,) = [r for r in records(tmp_path) if r["level"] == "warning"]
    assert (found["message"], found["category"]) == ("the moon is full", "UserWarning")
    assert Path(__file__).name in found["where"]


def test_what_libraries_log_goes_there(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)
    rank_log.open_log(tmp_path, rank=0)
    try:
        raise OSError("cable")
    except OSError:
        logging.getLogger("some.library").exception("lost the %s", "network")
    rank_log.end()
    assert logging.getLogger().handlers == before
    (found,) = [r for r in records(tmp_path) if r["level"] == "error"]
    assert (found["message"], found["logger"]) == ("lost the network", "some.library")
    assert "OSError: cable" in found["traceback"]


def test_an_error_leaves_its_traceback_and_its_cause(tmp_path: Path) -> None:
    rank_log.open_log(tmp_path, rank=0)
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as error:
        rank_log.record_failure(error)
    found = records(tmp_path)[-1]
    assert (found["level"], found["message"]) == ("error", "RuntimeError: outer")
    assert "KeyError: 'inner'" in found["traceback"]
    assert "direct cause" in found["traceback"]


def test_a_full_disk_ends_nothing_and_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = RankLog(), os.write
    log.open(tmp_path, 0, {})

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def half(file: int, data: bytes) -> int:
        return write(file, data[: len(data) // 2])

    for failing in (full, half):
        monkeypatch.setattr(os, "write", failing)
        log.write("info", "lost")
    monkeypatch.setattr(os, "write", write)
    log.write("info", "there")
    log.close()
    lines = (tmp_path / "rank_00000.jsonl").read_text().splitlines()
    told = [json.loads(text)["message"] for text in (lines[0], *lines[-2:])]
    assert told == ["start", "2 records could not be written", "there"]


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    rank_log.open_log(tmp_path / "logs", rank=0)
    rank_log.record("nowhere")
    assert (tmp_path / "logs").read_text() == "a file"
