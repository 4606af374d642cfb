"""Disks that fill up, ranks that die, signals at bad moments: nothing is lost, and one line says it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_gdpo.training.checkpoint import find_newest_valid

from .tiny import (
    DEADLINE,
    common,
    finish,
    metrics,
    pairs,
    several,
    started,
    steps,
    wait_for_step,
    write_jsonl,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs more rights than the tests have ({done.stderr.strip()})")


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """`output/checkpoints` on a file system of its own; its size is set by remounting."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    place = root / "output" / "checkpoints"
    place.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _used(place: Path) -> int:
    state = os.statvfs(place)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def test_full_and_read_only_disks(root: Path, model: Path, data: Path, small_disk: Path) -> None:
    """Start, fill up, go read-only, mend: one run through all of it."""
    output = small_disk.parent
    train = ["train", *common(model, data, output, *steps(6), "trainer.save_interval=3")]
    begun = several(root / "logs-begun", {"begun": train})["begun"]
    assert begun.status == 0, begun.err
    shutil.rmtree(small_disk / "step_00000006")
    (small_disk / "latest").write_text("step_00000003\n")

    # Room for half a checkpoint. tmpfs counts whole pages.
    room = _used(small_disk) // 2
    _mount("-o", f"remount,size={_used(small_disk) + room}", str(small_disk))
    full = several(root / "logs-full", {"full": train})["full"]
    assert full.status == 1, full.err
    (line,) = full.complaints
    assert "error: could not" in line
    assert str(small_disk) in line
    assert "No space left" in line or "Errno 28" in line
    assert "previous checkpoint is untouched" in line
    assert "Traceback" not in full.err
    assert (small_disk / "latest").read_text() == "step_00000003\n"
    assert find_newest_valid(small_disk).path == small_disk / "step_00000003"
    assert [e["step"] for e in metrics(output)] == [0, 1, 2, 3, 4, 5]

    _mount("-o", "remount,ro,size=64m", str(small_disk))
    refused = several(root / "logs-ro", {"ro": train})["ro"]
    assert refused.status == 1, refused.err
    (line,) = refused.complaints
    assert "Read-only file system" in line
    assert "Traceback" not in refused.err

    _mount("-o", "remount,rw,size=64m", str(small_disk))
    mended = several(root / "logs-mended", {"mended": train})["mended"]
    assert mended.status == 0, mended.err
    assert "resumed step_00000003: 3 of 6 steps" in mended.out
    assert (small_disk / "latest").read_text() == "step_00000006\n"
    left = sorted(path.name for path in small_disk.iterdir())
    assert left == ["latest", "step_00000003", "step_00000006"]


def _children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()]


@pytest.mark.parallel
def test_a_rank_that_dies_takes_the_others_down_within_a_minute(
    root: Path, model: Path, data: Path
) -> None:
    output = root / "dies"
    long = [*steps(5000), "parallel=pp2", "trainer.save_interval=20"]
    with started("train", *common(model, data, output, *long)) as process:
        wait_for_step(process, output, 22)
        ranks = _children(process)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        killed = time.monotonic()
        result = finish(process)
        assert time.monotonic() - killed < 60
    assert result.status == 1
    (line,) = [c for c in result.complaints if "rank 1" in c]
    assert "killed by SIGKILL" in line
    for rank in ranks:
        assert not Path(f"/proc/{rank}").exists()
    found = find_newest_valid(output / "checkpoints")
    assert found.path is not None
    assert found.path.name >= "step_00000020"


def test_a_signal_while_the_reference_is_computed(root: Path, model: Path) -> None:
    """Nothing that is half done is kept, and the run can be queued again."""
    many = write_jsonl(root / "many.jsonl", pairs(6000))
    output = root / "early"
    with started("train", *common(model, many, output, *steps(1))) as process:
        partial = output / "reference" / "train.partial"
        limit = time.monotonic() + DEADLINE
        while not partial.exists() and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        result = finish(process)
    assert result.status == 75, f"{result.status} {result.err}"
    assert "Traceback" not in result.err
    assert not (output / "reference" / "train").exists()
    assert not (output / "checkpoints").exists()
