"""Local ranks that are started: their variables, their statuses, signals, and who is to blame."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER_ERROR
from nemo_gdpo.launch import ranks as ranks_module
from nemo_gdpo.launch.ranks import _Ranks, launch_ranks
from tests.support.ranks import ROOT


def _rank(code: str) -> list[str]:
    return [
        sys.executable,
        "-S",
        "-c",
        f"import os, sys, time; rank = int(os.environ['RANK']); {code}",
    ]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(0)", EXIT_DONE),
        ("sys.exit(75)", EXIT_REQUEUE),
        ("sys.exit(75 if rank else 0)", EXIT_REQUEUE),
        ("sys.exit(2)", EXIT_USER_ERROR),
        ("sys.exit(3)", EXIT_FAILED),
    ],
)
def test_status_of_the_ranks_is_the_status_of_the_run(code: str, status: int) -> None:
    assert launch_ranks(2, _rank(code)) == status


def test_user_error_of_one_rank_decides_the_exit_status() -> None:
    code = "time.sleep(0.5) if rank == 0 else None; sys.exit(2 if rank == 0 else 1)"
    assert launch_ranks(2, _rank(code)) == EXIT_USER_ERROR


def test_ranks_get_torchruns_variables(tmp_path: Path) -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    code = f"open(r'{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[n] for n in {names}))"
    assert launch_ranks(2, _rank(code)) == EXIT_DONE
    first, second = ((tmp_path / str(rank)).read_text().split() for rank in range(2))
    assert first[:5] == ["0", "0", "2", "2", "127.0.0.1"]
    assert second[:5] == ["1", "1", "2", "2", "127.0.0.1"]
    assert first[5] == second[5]


@pytest.mark.parametrize("killed", [0, 1])
def test_the_rank_that_was_killed_is_named(killed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the one that lost its connection to it, though both have ended when one looks."""
    ranks = _Ranks()
    ranks.start(2, _rank(f"os.kill(os.getpid(), 9) if rank == {killed} else sys.exit(1)"))
    for process in ranks.processes:
        process.wait()
    assert ranks.wait() == EXIT_FAILED
    assert f"rank {killed} was killed by SIGKILL" in capsys.readouterr().err


def test_when_a_rank_dies_the_others_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks_module, "GRACE_SECONDS", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = f"os.kill(os.getpid(), 9) if rank == 1 else exec({deaf!r})"
    begun = time.monotonic()
    assert launch_ranks(2, _rank(code)) == EXIT_FAILED
    assert time.monotonic() - begun < 10
    assert "rank 1 was killed by SIGKILL; all ranks are stopped" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM and SIGUSR1 as they are, Ctrl-C as SIGTERM; ranks then stop in their own time."""
    rank_code = f"""
import os, signal, sys, time
from pathlib import Path
place = Path({str(tmp_path)!r})
rank = os.environ["RANK"]
def stop(number, frame):
    time.sleep(0.3)
    (place / f"got{{rank}}").write_text(str(number))
    sys.exit(75)
for n in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(n, stop)
(place / f"ready{{rank}}").touch()
time.sleep(60)
"""
    parent_code = (
        "import sys; from nemo_gdpo.launch.ranks import launch_ranks; "
        f"sys.exit(launch_ranks(2, [sys.executable, '-S', '-c', {rank_code!r}]))"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], cwd=ROOT) as parent:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.send_signal(number)
        assert parent.wait(timeout=30) == EXIT_REQUEUE
    expected = signal.SIGTERM if number == signal.SIGINT else number
    assert [(tmp_path / f"got{rank}").read_text() for rank in range(2)] == [str(int(expected))] * 2


def test_a_signal_before_training_began_asks_for_a_requeue(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ranks that still import have no handler and die of the signal: nothing is lost."""
    ranks = _Ranks()
    ranks.start(2, _rank("time.sleep(60)"))
    ranks.forward(signal.SIGTERM)
    assert ranks.wait() == EXIT_REQUEUE
    assert "before training began" in capsys.readouterr().err
