"""A conversion that was killed resumes where it stopped; a failed one leaves what was there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_gdpo.conversion import atomic
from nemo_gdpo.conversion.atomic import MARKER
from nemo_gdpo.conversion.convert import convert_hf_to_megatron, convert_megatron_to_hf
from nemo_gdpo.conversion.formats import dist_writer
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io import staged
from nemo_gdpo.io.manifest import LOCK
from nemo_gdpo.io.progress_file import PROGRESS
from tests.conversion.conftest import ModelMaker
from tests.conversion.interrupted import FILE_BYTES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DIRECTIONS = ["hf-to-megatron", "megatron-to-hf"]
TENSORS = {"hf-to-megatron": 9, "megatron-to-hf": 7}
"""How many are read before the kill: in the middle of a file, after some that are whole."""


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist_writer, "_FILE_BYTES", FILE_BYTES)


def convert(direction: str, source: Path, destination: Path, **options: Any) -> None:
    if direction == "hf-to-megatron":
        convert_hf_to_megatron(source, destination, **options)
    else:
        convert_megatron_to_hf(source, destination, max_shard_bytes=FILE_BYTES, **options)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        p.relative_to(directory).as_posix(): p.read_bytes()
        for p in directory.rglob("*")
        if p.is_file()
    }


def identity(directory: Path, names: list[str]) -> dict[str, tuple[int, int]]:
    """Inode and time of change: a file that is written again has another."""
    found = {name: (directory / name).stat() for name in names}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.fixture
def killed(
    make_model: ModelMaker, tmp_path: Path
) -> Callable[[str], tuple[Path, Path, Path, list[str]]]:
    """Kill a conversion; returns source, destination, staging directory and finished files."""

    def kill(direction: str) -> tuple[Path, Path, Path, list[str]]:
        source = make_model()
        if direction == "megatron-to-hf":
            convert_hf_to_megatron(source, tmp_path / "megatron")
            source = tmp_path / "megatron"
        destination = tmp_path / "out"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.conversion.interrupted",
                direction,
                str(source),
                str(destination),
                str(TENSORS[direction]),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        staging = tmp_path / ".out.partial"
        suffix = ".distcp" if direction == "hf-to-megatron" else ".safetensors"
        weights = sorted(name for name in contents(staging) if name.endswith(suffix))
        finished = weights[:-1]  # the last was being written
        assert len(finished) >= 2
        assert not destination.exists()
        return source, destination, staging, finished

    return kill


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resumes_where_it_was_killed(
    killed: Callable[[str], Any],
    tmp_path: Path,
    direction: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, destination, staging, finished = killed(direction)
    before = identity(staging, finished)
    convert(direction, source, destination)
    assert f"continuing, {len(finished)} files" in capsys.readouterr().err
    assert identity(destination, finished) == before
    convert(direction, source, tmp_path / "whole")
    assert contents(destination) == contents(tmp_path / "whole")
    assert not staging.exists()
    assert not any((destination / name).exists() for name in (LOCK, PROGRESS))


@pytest.mark.parametrize("change", ["setting", "source"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_another_source_or_setting_starts_afresh(
    killed: Callable[[str], Any],
    make_model: ModelMaker,
    tmp_path: Path,
    direction: str,
    change: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, destination, _, _ = killed(direction)
    options: dict[str, Any] = {}
    if change == "setting":
        options = {"dtype": torch.bfloat16}
    else:
        torch.manual_seed(99)
        other = make_model("other", rms_norm_eps=1e-3)
        if direction == "megatron-to-hf":
            convert_hf_to_megatron(other, source)
        else:
            source = other
    capsys.readouterr()
    convert(direction, source, destination, **options)
    assert "starting afresh" in capsys.readouterr().err
    convert(direction, source, tmp_path / "whole", **options)
    assert contents(destination) == contents(tmp_path / "whole")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_finished_files_are_checked(
    killed: Callable[[str], Any], tmp_path: Path, direction: str
) -> None:
    """One has another bit, one is shorter: both are converted again, the others are kept."""
    source, destination, staging, finished = killed(direction)
    first, second = (staging / name for name in finished[:2])
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    convert(direction, source, destination)
    convert(direction, source, tmp_path / "whole")
    assert contents(destination) == contents(tmp_path / "whole")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_was_there_stays_until_the_end(
    killed: Callable[[str], Any], make_model: ModelMaker, tmp_path: Path, direction: str
) -> None:
    source, destination, staging, _ = killed(direction)
    shutil.rmtree(staging)
    convert(direction, source, destination)
    before = contents(destination)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.conversion.interrupted",
            direction,
            str(source),
            str(destination),
            "4",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert contents(destination) == before


def test_two_at_once_are_refused(make_model: ModelMaker, tmp_path: Path) -> None:
    source, staging = make_model(), tmp_path / ".out.partial"
    staging.mkdir()
    with (staging / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another conversion is writing it"):
            convert_hf_to_megatron(source, tmp_path / "out")
    convert_hf_to_megatron(source, tmp_path / "out")


def test_without_locks_nothing_is_shared(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    convert_hf_to_megatron(make_model(), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_replacing_without_an_exchange(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """A file system that cannot swap two directories in one step."""
    source, destination = make_model(), tmp_path / "out"
    convert_hf_to_megatron(source, destination)
    first = (destination / MARKER).stat().st_ino
    if not exchange:
        monkeypatch.setattr(staged, "_exchange", lambda first, second: False)
    convert_hf_to_megatron(source, destination)
    assert (destination / MARKER).stat().st_ino != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "out"]


def test_a_stop_between_two_renames_is_fixed(make_model: ModelMaker, tmp_path: Path) -> None:
    source, destination = make_model(), tmp_path / "out"
    convert_hf_to_megatron(source, destination)
    before = contents(destination)
    destination.rename(tmp_path / ".out.old")
    with (
        pytest.raises(UserError, match="for another reason"),
        atomic.staged_directory(destination, kind="megatron", key={}),
    ):
        raise UserError("it fails for another reason")
    assert contents(destination) == before


LIMITED = """
import resource, sys
from pathlib import Path
from nemo_gdpo.conversion.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_limit_on_file_sizes_in_the_middle(
    make_model: ModelMaker, tmp_path: Path, direction: str
) -> None:
    """The kernel refuses to write more, as a full disk or a quota does."""
    source, destination = make_model(), tmp_path / "out"
    if direction == "megatron-to-hf":
        convert_hf_to_megatron(source, tmp_path / "megatron")
        source = tmp_path / "megatron"
    convert(direction, source, destination)
    before, present = contents(destination), sorted(p.name for p in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "40000", direction, str(source), str(destination)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr  # nobody's mistake
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert "untouched" in done.stderr
    assert contents(destination) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == present


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here; the test of the size limit covers the path")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_disk_that_fills_up_during_an_export(
    make_model: ModelMaker, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_hf_to_megatron(make_model(), tmp_path / "megatron")
    destination = small_disk / "out"
    convert_megatron_to_hf(tmp_path / "megatron", destination)
    before = contents(destination)
    # There was room when it began, and somebody else took it.
    monkeypatch.setattr(atomic, "check_space", lambda *arguments: None)
    with pytest.raises(RunError, match=r"No space left on device.*untouched"):
        for number in range(9):
            convert_megatron_to_hf(tmp_path / "megatron", small_disk / f"more{number}")
    assert contents(destination) == before
    names = sorted(p.name for p in small_disk.iterdir())
    assert not any(name.startswith(".") for name in names)
    with pytest.raises(RunError, match="untouched"):
        convert_megatron_to_hf(tmp_path / "megatron", destination)
    assert contents(destination) == before
