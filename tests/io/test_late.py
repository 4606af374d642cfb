"""Files that come late are waited for; those that never come are named, with a remedy."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.io import late
from nemo_gdpo.io.late import sizes_of, wait_for_files

DELAY = 0.5
REMEDY = "share the directory"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "LIMIT_SECONDS", 0.3)


def _later(action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(DELAY, action)
    timer.start()
    return timer


def _appear(directory: Path) -> None:
    directory.mkdir()
    (directory / "a").write_text("12345")


def _grow(directory: Path) -> None:
    (directory / "a").write_text("12345")


@pytest.mark.parametrize("what", ["directory", "file", "rest of it"])
def test_what_comes_late_is_waited_for(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "d"
    if what != "directory":
        directory.mkdir()
    if what == "rest of it":
        (directory / "a").write_text("123")
    begun = time.monotonic()
    timer = _later(lambda: (_appear if what == "directory" else _grow)(directory))
    wait_for_files(directory, {"a": 5}, REMEDY)
    assert DELAY <= time.monotonic() - begun < 30
    assert (directory / "a").read_text() == "12345"
    timer.join()


def test_what_is_there_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("123")
    (tmp_path / "b").write_text("1")
    sizes = sizes_of(tmp_path)
    assert sizes == {"inner/a": 3, "b": 1}
    (tmp_path / "c").write_text("of somebody else")
    begun = time.monotonic()
    wait_for_files(tmp_path, sizes, REMEDY)
    wait_for_files(tmp_path, {}, REMEDY)
    assert time.monotonic() - begun < 0.2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"b": 1, "a": 3}, "/d/a is missing"),
        ({"b": 2}, "/d/b has 1 bytes instead of 2"),
    ],
)
def test_a_file_that_never_comes_is_named(tmp_path: Path, sizes: dict[str, int], told: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b").write_text("1")
    with pytest.raises(UserError) as caught:
        wait_for_files(tmp_path / "d", sizes, REMEDY)
    host = os.uname().nodename
    assert str(caught.value) == (
        f"{tmp_path}{told}; {host} has waited 0.3 s for what rank 0 sees; {REMEDY}"
    )


@pytest.mark.usefixtures("impatient")
def test_a_directory_that_never_comes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/d is missing; .* rank 0 sees; share"):
        wait_for_files(tmp_path / "d", {}, REMEDY)


def test_nothing_lies_below_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert sizes_of(tmp_path / "d") == {}
