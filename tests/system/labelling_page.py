"""An annotator at Label Studio's page: logs in, reads a pair, clicks, submits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Page

from tests.support.label_studio import LabelStudio

Click = Literal["left", "right", "tie", "skip", "Skip", "nothing", "left and tie"]
"""A response, a choice of the configuration, the page's own button, or only Submit."""
PATIENCE = 180_000
"""Milliseconds that a page may take."""
LINE = ".lsf-richtext__line"
PROMPT = f"document.querySelector('{LINE}')?.innerText"


class Annotator:
    """Someone with the account of a server, and all hosts that the browser asked."""

    def __init__(self, page: Page, studio: LabelStudio) -> None:
        self.page, self.studio = page, studio
        self.asked: set[str] = set()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.asked.add(request.url))

    def log_in(self) -> None:
        page = self.page
        page.goto(f"{self.studio.url}/user/login/", wait_until="domcontentloaded")
        page.fill("input[name=email]", self.studio.username)
        page.fill("input[name=password]", self.studio.password)
        page.click("button[type=submit]")
        page.wait_for_function("!location.pathname.includes('login')")

    def answer(
        self,
        project: int,
        tasks: list[dict[str, Any]],
        clicks: Mapping[str, Click],
        seen: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Answer as many tasks as there are clicks, in whatever order they come.

        Args:
            project: number.
            tasks: what was pushed; each has a prompt of its own.
            clicks: by prompt.
            seen: called with the prompt, after the click and before Submit.
        """
        data = {task["data"]["prompt"]: task["data"] for task in tasks}
        self.page.goto(
            f"{self.studio.url}/projects/{project}/data?labeling=1", wait_until="domcontentloaded"
        )
        before = ""
        for _ in clicks:
            self.page.wait_for_function(f"(before) => {PROMPT} && {PROMPT} != before", arg=before)
            before = self.page.locator(LINE).first.inner_text()
            self._one(data[before], clicks[before], seen)

    def _one(self, task: dict[str, Any], click: Click, seen: Callable[[str], None]) -> None:
        page = self.page
        for side in ("left", "right"):
            assert page.get_by_text(task[side], exact=True).is_visible()
        for part in click.split(" and "):
            if part in ("left", "right"):
                page.get_by_text(task[part], exact=True).click()
            elif part in ("tie", "skip"):
                page.locator(f"input[name={part}]").check()
        seen(task["prompt"])
        button = "bottombar-skip-button" if click == "Skip" else "bottombar-submit-button"
        with page.expect_response(_is_annotation) as answer:
            page.get_by_test_id(button).click()
        assert answer.value.status == 201

    def picture(self, path: Path) -> None:
        """The page as it is shown, which fits the documentation."""
        self.page.screenshot(path=path)


def _is_annotation(response: Any) -> bool:
    return response.request.method == "POST" and "/annotations" in response.url
