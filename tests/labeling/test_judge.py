"""A judge as one more annotator: both orders, what it does not answer, a server that goes."""

from __future__ import annotations

import json

import pytest

from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR
from tests.labeling.commands import Desk
from tests.support.servers import Answer, judge_server


@pytest.fixture
def asked(desk: Desk) -> Desk:
    """p3, p1, p5 and p0 were asked about."""
    desk.select(4)
    return desk


def _good(first: str, second: str, number: int) -> Answer:
    del second, number
    return "[[A]]" if first.startswith("Good") else "[[B]]"


def _judge(desk: Desk, url: str, *more: str) -> tuple[int, str, str]:
    return desk.run(
        "judge", f"label.judge.url={url}", "label.judge.model=m", "label.judge.retries=0",
        "label.judge.concurrency=1", *more,
    )  # fmt: skip


def test_a_judge_answers_once_and_in_both_orders(asked: Desk) -> None:
    with judge_server(_good) as judge:
        status, out, _ = _judge(asked, judge.url)
        assert (status, out) == (EXIT_DONE, "judge:m: 4 new answers, 8 questions\n")
        assert len(judge.requests) == 8
        assert _judge(asked, judge.url)[:2] == (EXIT_DONE, "judge:m: 0 new answers, 0 questions\n")
        assert len(judge.requests) == 8
    state = asked.state()
    for pair, one in state.asked.items():
        (answer,) = state.answers[pair]
        better = "left" if one.question.left.startswith("Good") else "right"  # type: ignore[union-attr]
        assert (answer.annotator, answer.outcome, answer.source) == ("judge:m", better, "judge")


def test_a_preference_for_a_place_is_a_tie(asked: Desk) -> None:
    with judge_server(lambda *_: "[[A]]") as judge:
        assert _judge(asked, judge.url, "label.annotator=j")[0] == EXIT_DONE
    said = {(a.annotator, a.outcome) for given in asked.state().answers.values() for a in given}
    assert said == {("j", "tie")}


def test_no_verdict_is_no_answer(asked: Desk) -> None:
    with judge_server(lambda *_: "Both are fine.") as judge:
        status, out, _ = _judge(asked, judge.url)
    assert status == EXIT_DONE
    assert "note: no answer about 4 pairs (4 unparsable)" in out
    assert asked.state().answers == {}


def test_a_server_that_goes_in_the_middle_loses_nothing(
    asked: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs are recorded two by two here: after five answers two pairs are whole."""
    monkeypatch.setattr("nemo_gdpo.verbs.label.judge.BATCH", 2)
    with judge_server(lambda a, b, n: _good(a, b, n) if n <= 5 else None) as judge:
        status, _, error = _judge(asked, judge.url)
        assert status == EXIT_FAILED
        assert "Traceback" not in error
        assert len(asked.state().answers) == 2
        judge.answer = _good
        before = len(judge.requests)
        assert _judge(asked, judge.url)[0] == EXIT_DONE
        assert len(judge.requests) - before == 3, "what it had answered is asked again"
    assert len(asked.state().answers) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("label.judge.model=m",), "label.judge.url: is not set"),
        (("label.judge.url=http://h/v1",), "label.judge.model: is not set"),
        (("label.judge.url=ftp://h", "label.judge.model=m"), "label.judge.url: ftp://h is not"),
    ],
)
def test_mistakes(asked: Desk, arguments: tuple[str, ...], message: str) -> None:
    status, _, error = asked.run("judge", *arguments)
    assert (status, message in error) == (EXIT_USER_ERROR, True), error


def test_status_adds_everything_up(asked: Desk) -> None:
    lines = asked.export("tasks.jsonl")
    for who, outcomes in {"ann": ("left", "tie", "left"), "bo": ("left", "tie", "right")}.items():
        given = [
            line | {"annotator": who, "outcome": outcome}
            for line, outcome in zip(lines, outcomes, strict=False)
        ]
        assert asked.give_back("back.jsonl", given)[0] == EXIT_DONE
    found = json.loads(asked.done("status", "label.cost={person: 0.5}", "--json"))
    assert (found["asked"], found["answered"], found["unanswered"]) == (4, 3, 1)
    assert found["labels"] == {"left": 1, "tie": 1, "conflict": 1, "open": 1}
    assert found["answers"] == {"ann": 3, "bo": 3}
    assert found["sources"] == {"person": 6}
    assert found["cost"] == 3.0
    # left 3, right 1, tie 2 of 6 values; one pair of three differs: 1 - 5 * 2 / (36 - 14).
    assert found["agreement"] == {
        "pairs": 3, "annotators": 2, "percent": pytest.approx(2 / 3),
        "alpha": pytest.approx(1 - 5 * 2 / 22),
    }  # fmt: skip
    shown = asked.done("status")
    assert "asked      4 pairs, no budget; by round 1: 4\n" in shown
    assert "66.7 % of pairs of answers are equal, Krippendorff's alpha 0.545" in shown
