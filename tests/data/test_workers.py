"""Tokenising in several processes: the result of one, to the byte, and their ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.data import build_dataset, load_prepared, save_prepared, workers
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io import processes
from nemo_gdpo.io.staged import same_contents

STOPS = [2]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK", 16)
    monkeypatch.setattr(workers, "SMALL", 16)


def row(number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "id": f"pair-{number}",
        "prompt": f"Tell me of the number {number}, \u2028 naïve \U0001f600.",
        "chosen": f" It is {number}.",
        "rejected": " No.",
        "chosen_score": 2.0,
        "rejected_score": 0.5,
        "rater": f"né {number % 7}",
    }
    return {**made, **changes}


def chat(number: int) -> dict[str, Any]:
    return row(
        number,
        prompt=[{"role": "user", "content": f"Is {number} prime?"}],
        chosen=[{"role": "assistant", "content": "I have to think about that for a while."}],
        rejected=[{"role": "assistant", "content": "Ja, größer."}],
    )


def rows() -> list[dict[str, Any]]:
    """Good ones, and one of every kind that is left out or counted, all over the file."""
    found = []
    for number in range(0, 300, 10):
        found += [row(number + i) for i in range(3)] + [chat(number + i) for i in range(3, 6)]
        found += [
            row(number + 6, rejected_score=2.0),
            row(number + 7, chosen=""),
            row(number + 8, chosen=" Yes <|im_end|> no"),
            row(number + 9, prompt="The same.", chosen=" Yes.", rejected=" No."),
        ]
    swapped = {"prompt": "The same.", "chosen": " No.", "rejected": " Yes."}
    long = " and so on" * 30
    return [*found, row(500, **swapped), row(501, chosen=f"{long} a", rejected=f"{long} b")]


def build(path: Path, tokenizer: Any, count: int | None, **arguments: Any) -> Any:
    settings = {"require_scores": True, "stop_token_ids": STOPS, "max_length": 48, **arguments}
    return build_dataset(path, tokenizer, workers=count, **settings)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started."""
    started: list[Any] = []
    start = workers._start

    def noted(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(workers, "_start", noted)
    return started


def ended(worker: Any) -> bool:
    return not worker.process.is_alive()


def test_several_processes_make_what_one_makes(
    write_jsonl: Callable[..., Path], smollm2: Any, tmp_path: Path, forks: list[Any]
) -> None:
    path = write_jsonl(rows())
    one = build(path, smollm2, 1, on_bad_pair="drop")
    assert not forks
    assert one.stats.ties_dropped == 30
    assert (one.stats.repeated, one.stats.contradictory) == (29, 1)
    assert one.stats.identical_after_cut == 1 and one.stats.responses_cut == 0
    assert len(one.stats.bad_dropped) == 2 and sum(one.stats.bad_dropped.values()) == 60
    assert len(one) == one.stats.pairs == 7 * 30 + 1
    first = save_prepared(one, tmp_path / "one")
    for count in (2, 5):
        several = build(path, smollm2, count, on_bad_pair="drop")
        assert len(forks) == count and all(map(ended, forks))
        forks.clear()
        assert several.stats == one.stats
        assert list(several.stats.bad_dropped) == list(one.stats.bad_dropped)
        assert list(several) == list(one)
        assert same_contents(first, save_prepared(several, tmp_path / f"of-{count}"))
    assert list(load_prepared(first)) == list(one)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # Reading is far ahead of the pair that cannot be tokenised, and has failed by then.
        ({100: row(100, chosen=" a <|im_end|> b"), 110: "{"}, "line 101, pair 'pair-100'"),
        ({100: "{", 110: row(110, chosen=" a <|im_end|> b")}, "line 101: not valid JSON"),
        ({150: row(150, id="pair-3")}, "line 151: id 'pair-3' was already used at .*line 4;"),
        ({150: row(150, chosen="")}, "line 151"),
    ],
)
def test_the_first_mistake_is_told_as_by_one_process(
    changes: dict[int, Any], said: str, write_jsonl: Callable[..., Path], smollm2: Any,
    forks: list[Any],
) -> None:  # fmt: skip
    path = write_jsonl([changes.get(number, row(number)) for number in range(200)])
    told = []
    for count in (1, 3):
        with pytest.raises(UserError, match=said) as error:
            build(path, smollm2, count)
        told.append((type(error.value), str(error.value)))
    assert told[0] == told[1]
    assert len(forks) == 3 and all(map(ended, forks))


def test_two_end_tokens_in_one_file(write_jsonl: Callable[..., Path], llama3: Any) -> None:
    """The first pair, of another process, decides."""
    message = [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]
    talk = {"prompt": [{"role": "user", "content": "It"}]}
    talk |= {"chosen": message[0], "rejected": message[1]}
    text = {"prompt": "It is", "chosen": " good", "rejected": " bad"}
    path = write_jsonl([text] * 40 + [talk] * 3)
    told = []
    for count in (1, 2):
        try:
            found = build_dataset(path, llama3, workers=count)
            told.append(found.fingerprint)
        except UserError as error:
            told.append(str(error))
    assert told[0] == told[1]


def test_a_small_file_starts_no_process(
    write_jsonl: Callable[..., Path], smollm2: Any, forks: list[Any]
) -> None:
    build(write_jsonl([row(number) for number in range(16)]), smollm2, 4)
    assert not forks
    build(write_jsonl([row(number) for number in range(40)]), smollm2, 4)
    assert len(forks) == 3  # as many as there are chunks


def test_a_worker_that_is_killed_is_one_line(
    write_jsonl: Callable[..., Path], smollm2: Any, monkeypatch: pytest.MonkeyPatch,
    forks: list[Any],
) -> None:  # fmt: skip
    parent = os.getpid()

    def killed(*_: Any) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers, "encode_chunk", killed)
    path = write_jsonl([row(number) for number in range(100)])
    with pytest.raises(RunError, match=r"has ended \(signal SIGKILL\); .* data.workers") as error:
        build(path, smollm2, 3)
    assert "\n" not in str(error.value)
    assert all(map(ended, forks))


def test_a_defect_in_a_worker_keeps_its_traceback(
    write_jsonl: Callable[..., Path], smollm2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("nobody knows")

    monkeypatch.setattr(workers, "encode_chunk", broken)
    with pytest.raises(RuntimeError, match="nobody knows"):
        build(write_jsonl([row(number) for number in range(100)]), smollm2, 2)


SLOW = """
import json, os, sys, time
from nemo_gdpo.data import workers
from nemo_gdpo.data.types import RawPair
from nemo_gdpo.errors import Stopped
from nemo_gdpo.launch.signals import ALL_SIGNALS, StopRequest
workers.CHUNK, workers.SMALL = 4, 4
start = workers._start
pids = []
def noted(*given):
    worker = start(*given)
    pids.append(worker.process.pid)
    if len(pids) == 2:
        print(json.dumps(pids), flush=True)
    return worker
workers._start = noted
workers.encode_chunk = lambda *_: time.sleep(60)
pairs = (RawPair(str(i), "a", "b", "c") for i in range(100))
try:
    with StopRequest(ALL_SIGNALS, interrupts="stopped by {signal}"):
        list(workers.encoded_chunks(pairs, None, None, 2))
except Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(75)
"""


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM\n"),
        (signal.SIGINT, 75, "stopped by Ctrl-C\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_signal_ends_all_of_them_at_once(number: signal.Signals, status: int, said: str) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert started.stdout is not None
    pids = json.loads(started.stdout.readline())
    time.sleep(0.3)
    began = time.monotonic()
    if number == signal.SIGKILL:
        started.kill()
    else:
        os.killpg(started.pid, number)  # as a terminal and a scheduler do
    _, told = started.communicate(timeout=20)
    assert (started.returncode, told) == (status, said)
    limit = time.monotonic() + 5
    while any(processes._started(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(processes._started(pid) for pid in pids)
    assert time.monotonic() - began < 10


def test_the_cpus_are_those_of_the_affinity_and_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(processes, "_CPU_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert processes.usable_cpus() == 6
    for text, expected in (("max 100000", 6), ("350000 100000", 3), ("50000 100000", 1)):
        quota.write_text(f"{text}\n")
        assert processes.usable_cpus() == expected
