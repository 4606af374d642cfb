"""Disks that fill up, ranks that die, signals at bad moments: nothing is lost, one line says it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_gdpo.training.checkpoint import find_newest_whole
from tests.support.commands import (
    DEADLINE,
    common,
    finish,
    metrics,
    several,
    started,
    steps,
    wait_for_step,
)
from tests.support.data import pairs, write_jsonl

pytestmark = pytest.mark.parallel


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs more rights than the tests have ({done.stderr.strip()})")


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """`output/checkpoints` on a separate file system; its size is set by remounting."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    place = root / "output" / "checkpoints"
    place.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_and_read_only_disks(root: Path, model: Path, data: Path, small_disk: Path) -> None:
    """Start, fill up, go read-only, fix: one run through all of it."""
    output = small_disk.parent
    train = ["train", *common(model, data, output, *steps(6), "trainer.save_interval=3")]

    def shell(script: str) -> list[str]:
        return ["!", "sh", "-euc", f"cd {small_disk}; {script}"]

    state, abandoned = "ls -A; cat latest", ".step_00000006.node-1-0a1b2c3d.tmp"
    done = several(
        root / "logs-disk",
        {
            "begun": train,
            # Space for half a checkpoint beside the first.
            "shrink": shell(
                "rm -r step_00000006; echo step_00000003 > latest; "
                "used=$(df -B1 --output=used . | tail -1); "
                "mount -o remount,size=$((used + used / 2)) ."
            ),
            "full": train,
            "after_full": shell(
                f"{state}; mkdir -p {abandoned}/dist; touch {abandoned}/.lock; "
                "mount -o remount,ro,size=64m ."
            ),
            "read_only": train,
            "after_read_only": shell(f"{state}; mount -o remount,rw ."),
            "fixed": train,
            "end": shell(state),
        },
    )
    for name in ("begun", "shrink", "after_full", "after_read_only", "fixed", "end"):
        assert done[name].status == 0, f"{name}: {done[name].err}"
    for name, reason in (("full", "MiB are free"), ("read_only", "Read-only file system")):
        assert done[name].status == 1, done[name].err
        (line,) = done[name].complaints
        assert "error: could not" in line
        assert str(small_disk) in line
        assert reason in line or "No space left" in line
        assert "previous checkpoint is untouched" in line
        assert "Traceback" not in done[name].err
    # Half a checkpoint does not keep the disk full, and `latest` has not moved.
    assert done["after_full"].out.split() == ["latest", "step_00000003", "step_00000003"]
    assert done["after_read_only"].out.split()[-1] == "step_00000003"
    assert "resumed step_00000003: 3 of 6 steps" in done["fixed"].out
    left = ["latest", "step_00000003", "step_00000006", "step_00000006"]
    assert done["end"].out.split() == left
    assert [entry["step"] for entry in metrics(output)] == [*range(6)]


def _children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()]


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
    found = find_newest_whole(output / "checkpoints")
    assert found.path is not None
    assert found.path.name >= "step_00000020"


def _runs(process: int) -> bool:
    """Whether it has not ended, if only to be waited for by a parent that is gone."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def test_ranks_of_a_launcher_that_is_killed_save_and_end(
    root: Path, model: Path, data: Path
) -> None:
    """They would go on without anybody who could stop them."""
    output = root / "launcher"
    long = [*steps(5000), "parallel=pp2", "trainer.save_interval=5000"]
    with started("train", *common(model, data, output, *long)) as process:
        wait_for_step(process, output, 3)
        ranks = _children(process)
        process.kill()
        killed = time.monotonic()
        while any(_runs(rank) for rank in ranks):
            assert time.monotonic() - killed < 60
            time.sleep(0.1)
    found = find_newest_whole(output / "checkpoints")
    assert found.path is not None
    assert found.path.name >= "step_00000003"
    assert metrics(output)[-1]["step"] == int(found.path.name[-8:]) - 1


@pytest.mark.nightly
def test_a_signal_while_the_reference_is_computed(root: Path, model: Path) -> None:
    """What is finished is kept, and the run can be queued again."""
    many = write_jsonl(root / "many.jsonl", pairs(6000))
    output = root / "early"
    with started("train", *common(model, many, output, *steps(1))) as process:
        limit = time.monotonic() + DEADLINE
        while (
            not any((output / "reference").glob(".train.partial/shard-*"))
            and time.monotonic() < limit
            and process.poll() is None
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        result = finish(process)
    assert result.status == 75, f"{result.status} {result.err}"
    assert "Traceback" not in result.err
    assert "of 6000 pairs are kept in " in result.complaints[0]
    assert [path.name for path in (output / "reference").iterdir()] == [".train.partial"]
    assert not (output / "checkpoints").exists()
