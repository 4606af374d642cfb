"""A real Label Studio: tasks are pushed, a real browser answers some of them, answers are pulled.

`make label-test`, because its environment takes minutes to install. `tests/assets/label_studio`
has what a server gave, for the tests that read answers; here it is compared with what one gives
now. `make label-test RENEW=1` writes it, and the picture of the page, anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.browser import chromium
from tests.support.label_studio import LabelStudio
from tests.support.ranks import ROOT
from tests.system.labelling_page import Annotator, Click

ASSETS = ROOT / "tests" / "assets" / "label_studio"
PICTURE = ROOT / "docs" / "images" / "label_studio.png"
RENEW = os.environ.get("NEMO_GDPO_LABEL_TEST") == "renew"
TEXTS = (
    ("a film about the sea", "Waves, salt, and a slow old captain.", "A captain looks for home."),
    ("a film about trains", "Two strangers share a night train.", "The last train does not stop."),
    ("a film about bread", "A baker wins back his village.", "A loaf crosses a border."),
    ("a film about snow", "Snow falls for a hundred days.", "A town forgets what summer was."),
    ("a film about a map", "The map is of a place yet to come.", "Whoever draws it, gets lost."),
    ("a film about bees", "A hive votes on where to live.", "A queen without a country."),
    ("a film about rain", "It rains on the just.", "An umbrella changes hands."),
    ("a film about clocks", "Time runs out, and then back.", "A clockmaker stops at noon."),
)
CLICKS: tuple[Click, ...] = ("left", "right", "tie", "skip", "Skip", "nothing", "left and tie")
"""For the tasks in turn; the last has none."""
VOLATILE = {
    *("id", "created_at", "updated_at", "lead_time", "unique_id", "completed_by", "updated_by"),
    *("project", "file_upload", "inner_id", "task", "last_created_by"),
}
"""Keys whose values differ between two runs: numbers, times, who it was."""
BY_CHANCE = {"draft_created_at"}
"""Keys that are null or not by how long the page was open: it saves drafts by itself."""


def tasks() -> list[dict[str, Any]]:
    return [
        {"data": {"pair": f"{number:04d}", "prompt": f"Write {prompt}.", "left": one, "right": two}}
        for number, (prompt, one, two) in enumerate(TEXTS)
    ]


@dataclass(frozen=True)
class Session:
    """What is left when the annotator goes home."""

    studio: LabelStudio
    project: int
    asked: set[str]

    def export(self) -> list[dict[str, Any]]:
        path = f"/api/projects/{self.project}/export?exportType=JSON&download_all_tasks=true"
        found: list[dict[str, Any]] = self.studio.call("GET", path)
        return sorted(found, key=lambda task: task["data"]["pair"])


@pytest.fixture(scope="module")
def session(studio: LabelStudio) -> Session:
    """A project of which a real browser answered all tasks but one."""
    project = studio.make_project((ASSETS / "config.xml").read_text(), tasks())
    prompts = [task["data"]["prompt"] for task in tasks()]

    with chromium() as browser:
        annotator = Annotator(browser.new_page(viewport={"width": 1100, "height": 480}), studio)

        def seen(prompt: str) -> None:
            if RENEW and prompt == prompts[0]:
                annotator.picture(PICTURE)

        annotator.log_in()
        annotator.answer(project, tasks(), dict(zip(prompts, CLICKS, strict=False)), seen)
    return Session(studio, project, annotator.asked)


def said(annotation: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Type, name of the tag, and value of each result."""
    return [(one["type"], one["from_name"], one["value"]) for one in annotation["result"]]


def test_what_was_clicked_comes_back(session: Session) -> None:
    export = session.export()
    assert [task["data"] for task in export] == [task["data"] for task in tasks()]
    found = [[said(one) for one in task["annotations"]] for task in export]
    assert found == [
        [[("pairwise", "better", {"selected": "left"})]],
        [[("pairwise", "better", {"selected": "right"})]],
        [[("choices", "neither", {"choices": ["tie"]})]],
        [[("choices", "neither", {"choices": ["skip"]})]],
        [[]],  # the page's own Skip
        [[]],  # Submit without a click, which the page allows
        [
            [
                ("pairwise", "better", {"selected": "left"}),
                ("choices", "neither", {"choices": ["tie"]}),
            ]
        ],
        [],
    ]
    cancelled = [[one["was_cancelled"] for one in task["annotations"]] for task in export]
    assert cancelled == [*([[False]] * 4), [True], [False], [False], []]


def settled(value: Any) -> Any:
    """The same with the type in place of each value that differs between two runs."""
    if isinstance(value, list):
        return [settled(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: type(found).__name__ if key in VOLATILE else settled(found)
        for key, found in value.items()
        if key not in BY_CHANCE
    }


def test_the_kept_export_is_what_a_server_gives(session: Session) -> None:
    export, kept = session.export(), ASSETS / "export.json"
    if RENEW:
        kept.write_text(json.dumps(export, indent=1) + "\n")
    assert settled(json.loads(kept.read_text())) == settled(export)


def test_nothing_was_asked_of_another_machine(session: Session) -> None:
    # Pictures and scripts that the page makes itself have no host.
    hosts = {urlsplit(url).netloc for url in session.asked} - {""}
    assert hosts == {urlsplit(session.studio.url).netloc}


def test_a_personal_token_is_one_that_the_server_takes(
    studio: LabelStudio, personal_token: str
) -> None:
    access = studio.call("POST", "/api/token/refresh/", {"refresh": personal_token})["access"]
    assert access.count(".") == 2 and access != personal_token
