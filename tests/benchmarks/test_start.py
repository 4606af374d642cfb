"""The benchmark of starts: its clock, on programs that do what a run does; and one real start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import start
from tests.support.ranks import clean_environment

PROGRAM = """
import pathlib, sys, time
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
path = pathlib.Path(sys.argv[1])
with path.open("a") as file:
    file.write("torn")
    file.flush()
    time.sleep(0.2)
    file.write(" line\\n")
    file.flush()
    time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


def program(path: Path, *, after: float = 0.0, status: int = 0) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(path), str(after), str(status)]


@pytest.mark.slow
def test_seconds_up_to_a_whole_line(tmp_path: Path) -> None:
    """0.3 CPU seconds, 0.2 of sleep, a line; the second after it does not count."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("of an earlier start\n")
    command = program(path, after=1.0)
    found = start.first_line(command, clean_environment(), path, tmp_path / "log")
    assert 0.3 <= found["cpu"] < found["wall"]
    assert found["wall"] >= 0.5
    assert path.read_text().count("\n") == 2


def test_a_start_that_fails_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"no update, status 3, see .*log"):
        start.first_line(command, clean_environment(), tmp_path / "none", tmp_path / "log")


def test_a_start_goes_on_where_another_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start.parse(["--starts", "resumed"])
    assert "--starts resumed goes on where cold ended: name both" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parallel
def test_our_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All four, in one round; the resumed one made the second update of the first."""
    argv = ["--quick", "--folder", str(tmp_path), "--starts", *start.OUR_STARTS]
    assert start.main(argv) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]] == list(start.OUR_STARTS)
    place = tmp_path / "round-0"
    assert start.lines_of(place / "cold" / "metrics.jsonl") == 2
    assert start.lines_of(place / "cached" / "metrics.jsonl") == 1
    assert list((place / "cache").rglob("*.distcp"))
    assert "resum" in (place / "resumed.log").read_text()
    # What is there is not measured again.
    assert start.main(argv) == 0
    assert "min  cold" not in capsys.readouterr().out
