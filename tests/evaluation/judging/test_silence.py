"""Questions without an answer: refused, cut, failed; servers of other manners; thinking judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.evaluation import JudgeConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.judging.judge import Judged
from nemo_gdpo.evaluation.judging.verdict import parse_verdict
from nemo_gdpo.io import http
from tests.support.servers import judge_server

from .test_judge import ask, outcomes, pair, prefers_good

FILTER = "The response was filtered due to the prompt triggering content management policy"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.001)


def asking_about(texts: dict[str, Any]) -> Any:
    """A judge that prefers the good one, and says what is told about some responses."""

    def answer(first: str, second: str, number: int) -> Any:
        told = next((said for text, said in texts.items() if text in (first, second)), None)
        return prefers_good(first, second, number) if told is None else told

    return answer


def judged(tmp_path: Path, about: Any, **changes: Any) -> list[Judged]:
    pairs = [pair(1), pair(2, "good", "bomb"), pair(3)]
    with judge_server(asking_about({"bomb": about})) as judge:
        return ask(judge, tmp_path / "t.jsonl", pairs, **changes)


@pytest.mark.parametrize(
    ("about", "outcome", "reason"),
    [
        ((400, FILTER), "refused", "content management policy"),
        (
            {"message": {"content": None, "refusal": "I cannot help."}, "finish_reason": "stop"},
            "refused",
            "I cannot help.",
        ),
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, "refused", "content_fil"),
        ((400, "maximum context length is 8192 tokens"), "refused", "context length"),
        (413, "refused", "status 413"),
        (
            {"message": {"content": "A is [[A]] at first, but"}, "finish_reason": "length"},
            "cut",
            "evaluation.judge.max_tokens=512; raise it",
        ),
        ("Neither.", "unparsable", "is no verdict (Neither.)"),
    ],
)
def test_one_pair_does_not_end_the_others(
    tmp_path: Path, about: Any, outcome: str, reason: str
) -> None:
    found = judged(tmp_path, about)
    assert outcomes(found) == ["win", outcome, "win"]
    assert found[1].reason is not None
    assert reason in found[1].reason
    assert found[1].pair.prompt_id == "p2"


def test_a_question_that_the_server_fails_at(tmp_path: Path) -> None:
    """Two of six: neither all, nor three in a row."""
    found = judged(tmp_path, 500, retries=1, concurrency=1)
    assert outcomes(found) == ["win", "failed", "win"]


def test_three_failures_in_a_row_are_a_server_that_is_gone(tmp_path: Path) -> None:
    def answer(first: str, second: str, number: int) -> Any:
        return prefers_good(first, second, number) if number <= 2 else 502

    pairs = [pair(n, "good", f"bad {n}") for n in range(10)]
    with judge_server(answer) as judge, pytest.raises(EvaluationError, match="status 502"):
        ask(judge, tmp_path / "t.jsonl", pairs, retries=0, concurrency=1)
    assert 5 <= len(judge.requests) <= 8


def test_a_server_that_refuses_everything_is_asked_eight_times(tmp_path: Path) -> None:
    pairs = [pair(n, "good", f"bad {n}") for n in range(30)]
    with (
        judge_server(lambda *_: (400, "unknown field")) as judge,
        pytest.raises(UserError, match="unknown field"),
    ):
        ask(judge, tmp_path / "t.jsonl", pairs, concurrency=1)
    assert 8 <= len(judge.requests) <= 10


def test_a_filter_that_takes_nothing_is_no_mistake(tmp_path: Path) -> None:
    with judge_server(lambda *_: (400, FILTER)) as judge:
        assert outcomes(ask(judge, tmp_path / "t.jsonl", [pair(1)])) == ["refused"]


def test_what_was_refused_or_cut_is_written_down_and_asked_again(tmp_path: Path) -> None:
    path, cut = (
        tmp_path / "t.jsonl",
        {"message": {"content": "So [[A]]"}, "finish_reason": "length"},
    )
    said: list[Any] = [cut]

    def answer(first: str, second: str, number: int) -> Any:
        return said[0] or prefers_good(first, second, number)

    with judge_server(answer) as judge:
        assert outcomes(ask(judge, path, [pair(1)])) == ["cut"]
        assert [json.loads(line)["cut"] for line in path.open()] == ["So [[A]]"] * 2
        said[0] = None
        assert outcomes(ask(judge, path, [pair(1)])) == ["win"]
        assert outcomes(ask(judge, path, [pair(1)])) == ["win"]
    assert len(judge.requests) == 4


def test_another_server_is_asked_anew(tmp_path: Path) -> None:
    for _ in range(2):
        with judge_server(prefers_good) as judge:
            ask(judge, tmp_path / "t.jsonl", [pair(1)])
        assert len(judge.requests) == 2


# --- servers of other manners -----------------------------------------------------------------


def test_a_server_that_wants_another_name_of_the_limit(tmp_path: Path) -> None:
    def answer(first: str, second: str, number: int) -> Any:
        if "max_tokens" in judge.requests[-1]:
            return 400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return prefers_good(first, second, number)

    with judge_server(answer) as judge:
        pairs = [pair(1), pair(2, "bad", "good")]
        assert outcomes(ask(judge, tmp_path / "t.jsonl", pairs, concurrency=1)) == ["win", "loss"]
    assert judge.requests[-1]["max_completion_tokens"] == 512
    assert len(judge.requests) == 5  # once refused, then remembered


def test_a_server_that_wants_its_own_temperature(tmp_path: Path) -> None:
    def answer(first: str, second: str, number: int) -> Any:
        if "temperature" in judge.requests[-1]:
            return 400, "Unsupported value: 'temperature' does not support 0 with this model."
        return prefers_good(first, second, number)

    with judge_server(answer) as judge:
        with pytest.raises(UserError, match=r"judge\.temperature: .* set null to leave it"):
            ask(judge, tmp_path / "t.jsonl", [pair(1)])
        found = ask(judge, tmp_path / "t.jsonl", [pair(1)], temperature=None)
    assert outcomes(found) == ["win"]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "So: "}, {"type": "text", "text": "[[TIE]]"}],
        [{"type": "thinking", "thinking": "[[A]]?"}, {"type": "text", "text": "[[TIE]]"}],
        [{"type": "reasoning", "text": "[[A]] or [[B]]"}, {"type": "output_text", "text": "tie"}],
        ["[[TIE]]"],
    ],
)
def test_answers_in_parts(tmp_path: Path, content: Any) -> None:
    with judge_server(lambda *_: {"message": {"content": content}}) as judge:
        (found,) = ask(judge, tmp_path / "t.jsonl", [pair(1)])
    assert found.outcome == "tie"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("<think>[[A]] or [[B]] or [[TIE]]?</think>\nIt is [[B]].", "B"),
        ("[[A]]? Or [[B]]?\n</think>\n\n[[B]]", "B"),  # begun in the template
        ("<think>Surely [[A]], since", None),  # never ended
        ("<think>x</think>A", "A"),
        ("<THINKING>[[A]]</THINKING> [[TIE]]", "tie"),
        ("[THINK]a[/THINK]B", "B"),
        ("<think></think><think>[[A]]</think>[[B]]", "B"),
        ('{"verdict": "A", "reason": "B is worse"}', "A"),
        ('```json\n{"winner": "Response B"}\n```', "B"),
        ('Here it is: {"verdict": "tie"}', "tie"),
        ('<think>{"verdict": "A"}</think>{"verdict": "[[B]]"}', "B"),
        ('{"A": 7, "B": 5}', None),
        ('{"verdict": "A", "winner": "B"}', None),
        ('{"verdict": "neither"}', None),
        ('{"verdict": ["A"]}', None),
        ("[" * 100000, None),
    ],
)
def test_verdicts_of_thinking_judges_and_of_json(answer: str, verdict: str | None) -> None:
    assert parse_verdict(answer) == verdict


def test_a_temperature_is_no_text() -> None:
    assert JudgeConfig(url="http://h/v1", model="m").temperature == 0
