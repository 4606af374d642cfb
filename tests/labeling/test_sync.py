"""Label Studio through its SDK, against a stand-in server; without the SDK, what is said."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from nemo_gdpo.errors import EXIT_FAILED, EXIT_USER_ERROR
from tests.labeling.commands import Desk, annotated, choice, side
from tests.labeling.studio_server import TOKEN, StandIn, studio_server

HAS_SDK = importlib.util.find_spec("label_studio_sdk") is not None
needs_sdk = pytest.mark.skipif(
    not HAS_SDK,
    reason="label-studio-sdk is in the environment `label` (tools/environment.py label)",
)


@pytest.fixture
def asked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """p3, p1, p5 and p0 were asked about; batches of two."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    for module in ("nemo_gdpo.labeling.sync", "nemo_gdpo.verbs.label.exchange"):
        monkeypatch.setattr(f"{module}.BATCH", 2)
    desk.select(4)
    return desk


def test_without_a_token_and_with_one_in_the_url(
    asked: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, error = asked.run("export", "label.url=http://u:p@h:1")
    assert (status, "carries a user, a password" in error) == (EXIT_USER_ERROR, True)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    status, _, error = asked.run("export", "label.url=http://h:1")
    assert status == EXIT_USER_ERROR
    assert "the environment variable LABEL_STUDIO_API_KEY is not set" in error


@pytest.mark.skipif(HAS_SDK, reason="it is installed here")
def test_without_the_sdk(asked: Desk) -> None:
    status, _, error = asked.run("export", "label.url=http://h:1")
    assert status == EXIT_USER_ERROR
    assert "needs the package label-studio-sdk" in error


def _answer(studio: StandIn, number: int, *results: dict[str, Any]) -> None:
    task = studio.tasks[1][number]
    task["annotations"] = annotated(task, *results)["annotations"]


@needs_sdk
def test_tasks_are_sent_once_and_answers_come_back(asked: Desk) -> None:
    with studio_server() as studio:
        out = asked.done("export", f"label.url={studio.url}", "label.title=Mine")
        assert "project 1 is made" in out
        assert "4 tasks sent to project 1, 0 were there" in out
        assert studio.projects[1]["title"] == "Mine"
        there = (f"label.url={studio.url}", "label.project=1")
        assert "0 tasks sent to project 1, 4 were there" in asked.done("export", *there)
        assert len(studio.tasks[1]) == 4
        _answer(studio, 0, side("left"))
        _answer(studio, 3, choice("tie"))
        assert asked.done("import", *there) == "2 new answers, 0 changed, 0 were there already\n"
        assert asked.done("import", *there) == "0 new answers, 0 changed, 2 were there already\n"
    outcomes = [a.outcome for given in asked.state().answers.values() for a in given]
    assert outcomes == ["left", "tie"]


@needs_sdk
def test_a_server_that_goes_in_the_middle_keeps_what_came(asked: Desk) -> None:
    with studio_server() as studio:
        asked.done("export", f"label.url={studio.url}")
        there = (f"label.url={studio.url}", "label.project=1")
        for number in range(4):
            _answer(studio, number, side("right"))
        studio.fails_from_page = 2
        status, out, error = asked.run("import", *there)
        assert (status, "is gone or failing" in error) == (EXIT_FAILED, True), error
        assert TOKEN not in error
        assert out == "2 new answers, 0 changed, 0 were there already\n"
        studio.fails_from_page = None
        assert "2 new answers, 0 changed, 2 were" in asked.done("import", *there)


@needs_sdk
def test_a_wrong_annotation_is_told_and_the_others_are_kept(asked: Desk) -> None:
    with studio_server() as studio:
        asked.done("export", f"label.url={studio.url}")
        _answer(studio, 0, side("left"), choice("tie"))
        _answer(studio, 1, side("left"))
        status, out, error = asked.run("import", f"label.url={studio.url}", "label.project=1")
    assert (status, "task 1, annotation 1: says left and tie" in error) == (EXIT_USER_ERROR, True)
    assert "1 new answers" in out


@needs_sdk
def test_what_the_server_refuses(asked: Desk) -> None:
    with studio_server() as studio:
        status, _, error = asked.run("import", f"label.url={studio.url}", "label.project=9")
        assert (status, "label.project: " in error) == (EXIT_USER_ERROR, True), error
        studio.token = "another"
        status, _, error = asked.run("export", f"label.url={studio.url}")
        assert (status, "refuses the token (status 401)" in error) == (EXIT_USER_ERROR, True)
        assert TOKEN not in error
