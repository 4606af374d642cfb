"""What annotators are given and give back: Label Studio's JSON, plain lines, and every mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR
from nemo_gdpo.labeling.events import Answer
from nemo_gdpo.labeling.studio import CONFIG
from tests.labeling.commands import Desk, annotated, choice, rating, side


@pytest.fixture
def asked(desk: Desk) -> Desk:
    """p3, p1, p5 and p0 were asked about."""
    desk.select(4)
    return desk


def _answers(desk: Desk) -> dict[str, list[tuple[Any, ...]]]:
    state = desk.state()
    return {
        asked.question.id: [(a.annotator, *a.says) for a in state.answers.get(pair, [])]
        for pair, asked in state.asked.items()
    }


def test_label_studio_there_and_back(asked: Desk) -> None:
    tasks = asked.export("tasks.json")
    assert [set(task) for task in tasks] == [{"data"}] * 4
    assert {tasks[0]["data"]["left"], tasks[0]["data"]["right"]} == {"Good 3.", "Bad 3."}
    assert asked.path.joinpath("tasks.xml").read_text() == CONFIG
    back = [
        annotated(tasks[0], side("left"), rating(2)),
        annotated(tasks[1], choice("tie"), user={"id": 2, "email": "a@b.c"}),
        annotated(tasks[2], was_cancelled=True),
        {**tasks[3], "annotations": []},
    ]
    status, out, error = asked.give_back("back.json", back)
    assert (status, error) == (EXIT_DONE, "")
    assert out == "3 new answers, 0 changed, 0 were there already\n"
    assert _answers(asked) == {
        "p3": [("label-studio:1", "left", 2.0)],
        "p1": [("label-studio:2", "tie", None)],
        "p5": [("label-studio:1", "skip", None)],
        "p0": [],
    }
    answer = asked.state().answers[asked.key(3)][0]
    assert (answer.time, answer.source) == ("2026-01-01T08:00:05.123000+00:00", "person")
    assert "0 new answers, 0 changed, 3 were there" in asked.give_back("back.json", back)[1]
    assert [task["data"]["pair"] for task in asked.export("rest.json")] == [asked.key(0)]
    assert len(asked.export("all.json", "label.answered=true")) == 4


def test_the_labelling_configuration_shows_what_tasks_have_and_nothing_else(asked: Desk) -> None:
    root = ElementTree.fromstring(CONFIG)
    shown = {tag.get("value", "") for tag in root.iter("Text")}
    assert shown == {"$prompt", "$left", "$right"}
    assert shown <= {f"${name}" for name in asked.export("tasks.json")[0]["data"]}
    names = {tag.get("name") for tag in root.iter() if tag.get("name")}
    pointed = {to for tag in root.iter() for to in (tag.get("toName") or "").split(",") if to}
    assert pointed <= names
    assert [tag.get("value") for tag in root.iter("Choice")] == ["tie", "skip"]


def test_lines_there_and_back(asked: Desk) -> None:
    lines = asked.export("tasks.jsonl")
    assert [line["outcome"] for line in lines] == [None] * 4
    lines[0] |= {"annotator": "ann", "outcome": "right", "strength": 0.5}
    lines[1] |= {"annotator": " bo ", "outcome": "skip", "time": "2026-01-01T09:00:00+01:00"}
    lines[2] |= {"annotator": "model", "outcome": "left", "source": "pseudo"}
    status, out, _ = asked.give_back("back.jsonl", lines)
    assert (status, out) == (0, "3 new answers, 0 changed, 0 were there already\n")
    assert _answers(asked)["p3"] == [("ann", "right", 0.5)]
    assert asked.state().answers[asked.key(1)] == [
        Answer(asked.key(1), "bo", "skip", "person", None, "2026-01-01T08:00:00.000000+00:00")
    ]
    lines[0]["outcome"] = "left"
    assert "0 new answers, 1 changed, 2 were there" in asked.give_back("back.jsonl", lines)[1]


def test_messages_are_given_as_text_and_come_back(desk: Desk) -> None:
    talk = (
        '{"id": "c", "prompt": [{"role": "user", "content": "Hi"}], '
        '"chosen": [{"role": "assistant", "content": "Hello!"}], '
        '"rejected": [{"role": "assistant", "content": "No."}]}\n'
    )
    desk.pairs.write_text(talk)
    desk.done("select", "label.strategy=random", f"data.train_path={desk.pairs}")
    task = desk.export("tasks.json")[0]
    assert task["data"]["prompt"] == "user: Hi"
    assert {task["data"]["left"], task["data"]["right"]} == {"Hello!", "No."}
    assert desk.give_back("back.json", [annotated(task, side("left"))])[0] == EXIT_DONE
    line = desk.export("tasks.jsonl", "label.answered=true")[0]
    line |= {"annotator": "ann", "outcome": "left"}
    assert desk.give_back("back.jsonl", [line])[0] == EXIT_DONE


def _exchanged(line: dict[str, Any]) -> dict[str, Any]:
    return line | {"left": line["right"], "right": line["left"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_exchanged, "left and right stand the other way round"),
        (lambda line: line | {"round": 2}, "has round 2, not 1 for pair"),
        (lambda line: line | {"left": "Fine."}, "has another left for pair"),
        (lambda line: line | {"prompt": "Ask"}, "has another prompt for pair"),
        (lambda line: line | {"pair": "f" * 64}, "pair ffffffffffff was not asked about"),
        (lambda line: line | {"pair": None}, "pair None was not asked about"),
        (lambda line: line | {"data_set": "e" * 64}, "is of another data set"),
        (lambda line: {"pair": line["pair"], "outcome": "left"}, "lacks data_set, left, prompt"),
        (lambda line: line | {"outcome": "both"}, "outcome is 'both'; write one of left, right"),
        (lambda line: line | {"annotator": None}, "annotator is None"),
        (lambda line: line | {"annotator": "  "}, "annotator is '  '"),
        (lambda line: line | {"source": "cat"}, "source is 'cat'"),
        (lambda line: line | {"strength": -1}, "strength is not a positive finite number"),
        (lambda line: line | {"strength": True}, "strength is not a number"),
        (lambda line: line | {"time": "noon"}, "time Invalid isoformat string"),
        (lambda line: line | {"time": "2026-01-01T08:00:00"}, "time has no zone"),
        (lambda line: line | {"note": "?"}, "has fields that nothing reads (note)"),
    ],
)
def test_a_line_that_does_not_fit_is_named_and_nothing_is_recorded(
    asked: Desk, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    lines = [line | {"annotator": "ann", "outcome": "left"} for line in asked.export("tasks.jsonl")]
    status, _, error = asked.give_back("back.jsonl", [lines[0], change(lines[1])])
    assert status == EXIT_USER_ERROR
    assert f"back.jsonl, line 2: {message}" in error
    assert error.count("\n") == 1
    assert asked.state().answers == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: annotated(task), "annotation 1: says neither a side nor tie nor skip"),
        (lambda task: annotated(task, side("left"), choice("tie")), "says left and tie"),
        (lambda task: annotated(task, side("up")), "annotation 1: is malformed ('up' is none of"),
        (lambda task: annotated(task, choice("maybe")), "is malformed ('maybe' is none of"),
        (lambda task: annotated(task, side("left"), user=None), "completed_by is None"),
        (lambda task: annotated(task, {"type": "labels", "value": {}}), "of type 'labels'"),
        (lambda task: annotated(task, {"type": "pairwise"}), "is malformed ('value')"),
        (lambda task: {"data": task["data"], "annotations": 3}, "is no task of Label Studio"),
        (lambda task: {"id": 3}, "is no task of Label Studio"),
        (lambda task: annotated({"data": _exchanged(task["data"])}, side("left")), "way round"),
    ],
)
def test_a_task_that_does_not_fit_is_named(
    asked: Desk, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    tasks = asked.export("tasks.json")
    good = annotated(copy.deepcopy(tasks[0]), side("left"))
    status, _, error = asked.give_back("back.json", [good, change(tasks[1])])
    assert status == EXIT_USER_ERROR
    assert "back.json, item 2" in error
    assert message in error
    assert asked.state().answers == {}


def test_all_mistakes_of_a_file_are_told_at_once(asked: Desk) -> None:
    lines = asked.export("tasks.jsonl")
    bad = [line | {"outcome": "x"} for line in lines[:3]]
    status, _, error = asked.give_back("back.jsonl", bad)
    assert (status, error.count(": outcome is 'x'")) == (EXIT_USER_ERROR, 3)
    status, _, error = asked.give_back("back.jsonl", bad * 5)
    assert "5 more in" in error


@pytest.mark.parametrize(
    ("step", "arguments", "message"),
    [
        ("export", (), "label.output: is not set, and neither is label.url"),
        ("export", ("label.output=a", "label.url=http://h:1"), "label.output: is set"),
        (
            "export",
            ("label.output=a", "label.project=3"),
            "label.project: is set without label.url",
        ),
        ("export", ("label.url=http://h:1", "label.format=jsonl"), "label.format: is jsonl"),
        ("export", ("label.output=a", "label.round=2"), "label.round=2: "),
        ("import", (), "label.answers: is not set"),
        ("import", ("label.answers=none.json",), "label.answers=none.json: file not found"),
        ("import", ("label.url=http://h:1",), "label.project: is not set"),
    ],
)
def test_settings_that_do_not_fit(
    asked: Desk, step: str, arguments: tuple[str, ...], message: str
) -> None:
    status, _, error = asked.run(step, *arguments)
    assert (status, message in error) == (EXIT_USER_ERROR, True), error


def test_a_ledger_that_asked_nothing_and_one_that_is_done(desk: Desk) -> None:
    status, _, error = desk.run("export", "label.output=a")
    assert (status, "nemo-gdpo label select makes it" in error) == (EXIT_USER_ERROR, True)
    desk.select(1)
    task = desk.export("tasks.json")[0]
    desk.give_back("back.json", [annotated(task, side("left"))])
    status, _, error = desk.run("export", "label.output=a")
    assert (status, "every pair has an answer" in error) == (EXIT_USER_ERROR, True)
