"""The judge: verdicts, both orders, a server that misbehaves, the transcript, the key."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.evaluation import JudgeConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.judging.judge import (
    Judged,
    Pair,
    judge_pairs,
    outcome_of,
    parse_verdict,
    question,
)
from nemo_gdpo.evaluation.judging.judge_client import JudgeClient
from nemo_gdpo.evaluation.judging.transcript import Transcript
from nemo_gdpo.io import http
from tests.support.servers import Judge, judge_server

SECRET = "sk-this-is-the-key"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)


def pair(number: int, response: str = "good", other: str = "bad") -> Pair:
    return Pair(f"p{number}", f"prompt {number}", response, other, "gdpo", "T=1", 0)


def ask(
    judge: Judge, path: Path, pairs: list[Pair], *, model: str = "j", **changes: Any
) -> list[Judged]:
    settings = {"url": judge.url, "model": model, "retries": 3, "timeout": 5.0, "concurrency": 2}
    config = JudgeConfig(**(settings | changes))
    client = JudgeClient(config)
    try:
        with Transcript(path) as transcript:
            return judge_pairs(
                pairs,
                client,
                transcript,
                model=model,
                criterion="is better",
                max_tokens=config.max_tokens,
                concurrency=config.concurrency,
            )
    finally:
        client.close()


def outcomes(judged: list[Judged]) -> list[str]:
    return [item.outcome for item in judged]


def prefers_good(first: str, second: str, number: int) -> str:
    del number
    if first == second:
        return "Both say the same. [[TIE]]"
    return "The first. [[A]]" if first == "good" else "The second one. [[B]]"


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A is shorter.\n[[A]]", "A"),
        ("[[b]]", "B"),
        ("Equal. [[ TIE ]]", "tie"),
        ("[[C]]", "tie"),
        ("[[A]] ... so [[A]]", "A"),
        ("**B**", "B"),
        (" tie.", "tie"),
        ("[[A]] or maybe [[B]]", None),
        ("Response A is better.", None),
        ("A cat", None),
        ("", None),
        ("[[D]]", None),
    ],
)
def test_verdicts(answer: str, verdict: str | None) -> None:
    assert parse_verdict(answer) == verdict


def test_every_pair_of_verdicts() -> None:
    """Straight: the run's response is A. Swapped: it is B."""
    expected = {
        ("A", "B"): "win",
        ("B", "A"): "loss",
        ("A", "A"): "inconsistent",
        ("B", "B"): "inconsistent",
        ("tie", "tie"): "tie",
        ("A", "tie"): "tie",
        ("tie", "A"): "tie",
        ("B", "tie"): "tie",
        ("tie", "B"): "tie",
    }
    assert {key: outcome_of(*key) for key in expected} == expected  # type: ignore[arg-type]
    assert (
        outcome_of(None, "A") == outcome_of("tie", None) == outcome_of(None, None) == "unparsable"
    )


def test_braces_and_tags_in_responses_are_only_text() -> None:
    (_, user) = question(pair(1, "{criterion} {0}", "[[A]]"), "is better", swapped=True)
    assert "<response_B>\n{criterion} {0}\n</response_B>" in user["content"]
    assert "<response_A>\n[[A]]\n</response_A>" in user["content"]


# --- the server -----------------------------------------------------------------------------


def test_the_better_response_wins_in_both_orders(tmp_path: Path) -> None:
    with judge_server(prefers_good) as judge:
        pairs = [pair(1), pair(2, "bad", "good"), pair(3, "good", "good")]
        assert outcomes(ask(judge, tmp_path / "t.jsonl", pairs)) == ["win", "loss", "tie"]
    assert {request["path"] for request in judge.requests} == {"/v1/chat/completions"}
    assert all(r["temperature"] == 0 and r["model"] == "j" for r in judge.requests)
    # The two orders of equal responses are one question.
    assert len(judge.requests) == 5


def test_a_judge_that_prefers_a_place_decides_nothing(tmp_path: Path) -> None:
    with judge_server(lambda *_: "[[A]]") as judge:
        assert outcomes(ask(judge, tmp_path / "t.jsonl", [pair(1)])) == ["inconsistent"]


def test_garbage_is_counted_and_not_guessed_at(tmp_path: Path) -> None:
    def garbled(first: str, second: str, number: int) -> str:
        return "I cannot decide" if first == "good" else prefers_good(first, second, number)

    with judge_server(garbled) as judge:
        assert outcomes(ask(judge, tmp_path / "t.jsonl", [pair(1)])) == ["unparsable"]
        # It was answered, so it is not asked again.
        ask(judge, tmp_path / "t.jsonl", [pair(1)])
    assert len(judge.requests) == 2
    verdicts = [json.loads(line)["verdict"] for line in (tmp_path / "t.jsonl").open()]
    assert sorted(map(str, verdicts)) == ["B", "None"]


@pytest.mark.parametrize("fault", [500, 429, None])
def test_passing_faults_are_tried_again(tmp_path: Path, fault: int | None) -> None:
    def flaky(first: str, second: str, number: int) -> Any:
        return fault if number <= 2 else prefers_good(first, second, number)

    with judge_server(flaky) as judge:
        assert outcomes(ask(judge, tmp_path / "t.jsonl", [pair(1)])) == ["win"]
    assert len(judge.requests) == 4


def test_lost_server_keeps_the_transcript_complete(tmp_path: Path) -> None:
    path = tmp_path / "judge" / "t.jsonl"
    pairs = [pair(n) for n in range(6)]

    is_back = False

    def dying(first: str, second: str, number: int) -> Any:
        return prefers_good(first, second, number) if number <= 5 or is_back else 503

    with judge_server(dying) as judge:
        with pytest.raises(EvaluationError, match=r"gone or failing \(status 503; 4 attempts\)"):
            ask(judge, path, pairs)
        kept = [json.loads(line) for line in path.open()]
        assert len(kept) == 5
        asked, is_back = len(judge.requests), True
        assert outcomes(ask(judge, path, pairs)) == ["win"] * 6
        assert len(judge.requests) - asked == 12 - 5


def test_no_judge_listens(tmp_path: Path) -> None:
    with judge_server(prefers_good) as judge:
        pass
    with pytest.raises(EvaluationError, match=r"gone or failing .*the same command again"):
        ask(judge, tmp_path / "t.jsonl", [pair(1)], retries=1)


def test_an_answer_that_takes_too_long(tmp_path: Path) -> None:
    def slow(first: str, second: str, number: int) -> str:
        time.sleep(0.6 if number == 1 else 0.0)
        return prefers_good(first, second, number)

    with judge_server(slow) as judge:
        found = ask(judge, tmp_path / "t.jsonl", [pair(1)], timeout=0.3)
    assert outcomes(found) == ["win"]
    assert len(judge.requests) == 3


@pytest.mark.parametrize(
    ("status", "complaint"), [(401, "refuses the key"), (404, "status 404"), (400, "status 400")]
)
def test_lasting_faults_are_not_tried_again(tmp_path: Path, status: int, complaint: str) -> None:
    with judge_server(lambda *_: status) as judge, pytest.raises(UserError, match=complaint):
        ask(judge, tmp_path / "t.jsonl", [pair(1)], concurrency=1)
    assert 1 <= len(judge.requests) <= 2


# --- the transcript -------------------------------------------------------------------------


def test_another_judge_or_criterion_is_asked_anew(tmp_path: Path) -> None:
    with judge_server(prefers_good) as judge:
        for model in ("j", "j", "k"):
            ask(judge, tmp_path / "t.jsonl", [pair(1)], model=model)
    assert [request["model"] for request in judge.requests] == ["j", "j", "k", "k"]


def test_the_transcript_says_what_was_asked(tmp_path: Path) -> None:
    with judge_server(prefers_good) as judge:
        ask(judge, tmp_path / "t.jsonl", [pair(7)])
    entries = {e["run_is"]: e for e in map(json.loads, (tmp_path / "t.jsonl").open())}
    assert entries["A"]["answer"] == "The first. [[A]]"
    assert entries["B"]["verdict"] == "B"
    assert entries["B"]["id"] == "p7"
    assert "<response_A>\nbad\n" in entries["B"]["messages"][1]["content"]


def test_a_torn_last_line_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with judge_server(prefers_good) as judge:
        ask(judge, path, [pair(1)])
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        assert outcomes(ask(judge, path, [pair(1)])) == ["win"]
        assert len(judge.requests) == 3
    assert len([json.loads(line) for line in path.open()]) == 2


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"key": "k", "answer": "[[A]]"}\n{"key": 1}\n')
    with pytest.raises(UserError, match=r"t\.jsonl, line 2: damaged"):
        Transcript(path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        Transcript(tmp_path / "t.jsonl"),
        pytest.raises(UserError, match="another evaluation"),
    ):
        Transcript(tmp_path / "t.jsonl")


# --- the key --------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not where the server repeats it, in an answer or in an error."""
    monkeypatch.setenv("JUDGE_KEY", SECRET)

    def telling(first: str, second: str, number: int) -> Any:
        return f"{SECRET} [[TIE]]" if number < 3 else 400

    with judge_server(telling) as judge:
        ask(judge, tmp_path / "t.jsonl", [pair(1)], key_variable="JUDGE_KEY")
        with pytest.raises(UserError, match="status 400") as caught:
            ask(judge, tmp_path / "t.jsonl", [pair(2)], key_variable="JUDGE_KEY")
    assert set(judge.keys) == {f"Bearer {SECRET}"}
    assert SECRET not in (tmp_path / "t.jsonl").read_text()
    assert "[key]" in (tmp_path / "t.jsonl").read_text()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key_variable": "NOT_THERE"}, "NOT_THERE is not set; export"),
        ({"url": "127.0.0.1:80"}, "is not a URL"),
        ({"url": "http://user:word@host/v1"}, "carries a user"),
        ({"url": "http://host/v1?api_key=x"}, "carries a user, a password or a query"),
    ],
)
def test_settings_of_the_server(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        JudgeClient(JudgeConfig(**({"url": "http://h/v1", "model": "m"} | changes)))
