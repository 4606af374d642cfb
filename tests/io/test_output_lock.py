"""One job at a time in an output_dir, on file systems with locks and without."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nemo_gdpo.io import output_lock
from nemo_gdpo.io.manifest import LOCK
from nemo_gdpo.io.output_lock import Holder, InUseError, OutputLock, hold
from nemo_gdpo.io.processes import Process, this_process
from tests.support.locks import holding

ELSEWHERE = Process("node-7", 4321, "99", "another boot pid:[1]")


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Names, times and contents of everything from `directory` down."""
    found = [directory, *directory.rglob("*")] if directory.exists() else []
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in found
    }


def record_of(directory: Path, **changes: object) -> Holder:
    """Write the record of somebody on another machine."""
    holder = Holder(ELSEWHERE, None, 0, time.time(), time.time())
    holder = replace(holder, **changes)  # type: ignore[arg-type]
    directory.mkdir(exist_ok=True)
    (directory / LOCK).write_bytes(holder.record())
    return holder


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lock, "hold_open_file", lambda descriptor: False)
    monkeypatch.setattr(output_lock, "SETTLE_SECONDS", 0.0)


class TestWithLocks:
    def test_the_second_is_told_who_is_there_and_changes_nothing(self, tmp_path: Path) -> None:
        place = tmp_path / "out"
        other = holding(place, SLURM_JOB_ID="77")
        try:
            before = snapshot(place)
            begun = time.monotonic()
            with pytest.raises(InUseError) as refused:
                hold(place)
            assert time.monotonic() - begun < 1.0
            assert snapshot(place) == before
        finally:
            other.kill()
            other.wait()
        assert refused.value.status == 2
        told = str(refused.value)
        assert f"another run is writing into {place}" in told
        host = os.uname().nodename
        assert f"process {other.pid} on {host}, Slurm job 77, since 20" in told
        assert "\n" not in told

    def test_a_killed_holder_holds_nothing(self, tmp_path: Path) -> None:
        other = holding(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / LOCK).read_text().strip()  # its record is still there
        begun = time.monotonic()
        hold(tmp_path).release()
        assert time.monotonic() - begun < 1.0

    def test_a_requeued_job_takes_over_from_its_earlier_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The lock of a node that is down may be held for minutes."""
        other = holding(tmp_path, SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1")
        try:
            monkeypatch.setenv("SLURM_JOB_ID", "77")
            monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
            with pytest.raises(InUseError):
                hold(tmp_path)
            monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
            lock = hold(tmp_path)
            found = Holder.parsed((tmp_path / LOCK).read_text())
            assert found is not None
            assert (found.process, found.restarts) == (this_process(), 2)
            lock.release()
        finally:
            other.kill()
            other.wait()

    def test_locks_that_each_node_has_for_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(output_lock, "BEAT_SECONDS", 0.1)
        monkeypatch.setattr(output_lock, "WATCH_SECONDS", 1.0)
        holder = record_of(tmp_path)

        def beat() -> None:
            time.sleep(0.2)
            (tmp_path / LOCK).write_bytes(replace(holder, beat=time.time()).record())

        alive = threading.Thread(target=beat)
        alive.start()
        with pytest.raises(InUseError, match=r"process 4321 on node-7"):
            hold(tmp_path)
        alive.join()
        hold(tmp_path).release()  # now nothing moves

    def test_an_old_record_of_another_machine_is_not_watched(self, tmp_path: Path) -> None:
        record_of(tmp_path, beat=time.time() - output_lock.DEAD_SECONDS - 1)
        begun = time.monotonic()
        hold(tmp_path).release()
        assert time.monotonic() - begun < 1.0

    def test_this_process_may_ask_again(self, tmp_path: Path) -> None:
        lock = hold(tmp_path)
        assert hold(tmp_path / "." / "") is lock
        lock.release()
        again = hold(tmp_path)
        assert again is not lock
        again.release()

    def test_the_beat_is_renewed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(output_lock, "BEAT_SECONDS", 0.05)
        with hold(tmp_path):
            first = Holder.parsed((tmp_path / LOCK).read_text())
            time.sleep(0.5)
            second = Holder.parsed((tmp_path / LOCK).read_text())
        assert first is not None
        assert second is not None
        assert second.beat > first.beat
        assert second.since == first.since
        assert (tmp_path / LOCK).read_bytes() == b""

    def test_a_holder_hears_that_it_was_taken_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(output_lock, "BEAT_SECONDS", 0.05)
        heard = threading.Event()
        lock = hold(tmp_path, on_lost=lambda holder: heard.set())
        (tmp_path / LOCK).unlink()
        record_of(tmp_path)
        assert heard.wait(10)
        lock.release()


@pytest.mark.usefixtures("no_locks")
class TestWithoutLocks:
    def test_a_living_process_of_this_machine(self, tmp_path: Path) -> None:
        other = holding(tmp_path)
        with pytest.raises(InUseError, match=rf"process {other.pid} on"):
            hold(tmp_path)
        other.kill()
        other.wait()
        hold(tmp_path).release()

    def test_another_machine_lives_as_long_as_its_beat(self, tmp_path: Path) -> None:
        record_of(tmp_path, beat=time.time() - output_lock.DEAD_SECONDS / 2)
        with pytest.raises(InUseError, match="node-7"):
            hold(tmp_path)
        record_of(tmp_path, beat=time.time() - output_lock.DEAD_SECONDS - 1)
        hold(tmp_path).release()

    def test_a_requeued_job_takes_over_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
        for job, restarts in (("78", 2), ("77", 3), (None, 0)):
            record_of(tmp_path, job=job, restarts=restarts)
            with pytest.raises(InUseError):
                hold(tmp_path)
        record_of(tmp_path, job="77", restarts=2)
        hold(tmp_path).release()

    def test_of_two_who_come_at_once_the_last_to_write_has_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(output_lock.time, "sleep", lambda seconds: record_of(tmp_path))
        with pytest.raises(InUseError, match="node-7"):
            hold(tmp_path)


class TestUndo:
    @pytest.mark.parametrize("what", ["missing", "empty", "no lock", "lock", "record"])
    def test_everything_is_as_it_was(self, tmp_path: Path, what: str) -> None:
        place = tmp_path / "deep" / "out"
        if what != "missing":
            place.mkdir(parents=True)
        if what in ("no lock", "lock", "record"):
            (place / "config.yaml").write_text("a: 1\n")
        if what == "lock":
            (place / LOCK).touch()
        if what == "record":
            record_of(place, beat=0.0)
        time.sleep(0.02)
        before = snapshot(tmp_path)
        lock = hold(place)
        assert snapshot(tmp_path) != before
        lock.undo()
        after = snapshot(tmp_path)
        if what == "missing":  # the parent has lost what it had won
            after[str(tmp_path)] = before[str(tmp_path)]
        assert after == before

    def test_what_was_written_meanwhile_stays(self, tmp_path: Path) -> None:
        lock = hold(tmp_path / "out")
        (tmp_path / "out" / "result").write_text("x")
        lock.undo()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    from nemo_gdpo.errors import RunError

    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"output_dir: .*file/out cannot be written \(Not a dir"):
        hold(tmp_path / "file" / "out")


def test_a_torn_record_is_nobodys() -> None:
    whole = json.dumps(asdict(Holder(ELSEWHERE, "1", 0, 1.0, 2.0)))
    assert Holder.parsed(whole) is not None
    assert Holder.parsed(whole[:40]) is None
    assert Holder.parsed("") is None
    assert Holder.parsed("[1]") is None
    assert OutputLock.__doc__
