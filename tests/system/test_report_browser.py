"""The report in a real Chromium: widths, colour schemes, contrast, requests, choosing samples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Route

from nemo_gdpo.evaluation.report.page import Finding, Section, write_report
from tests.evaluation.made_up_results import film_results
from tests.support.browser import chromium

SIZES = (400, 1600)
SCHEMES = ("light", "dark")
TONES: tuple[Literal["yes", "no", "open"], ...] = ("yes", "no", "open")

# Text nodes whose colour stands out too little from the nearest opaque surface (WCAG 2.2, 1.4.3).
LOW_CONTRAST = """
() => {
  const parse = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return { rgb: parts.slice(0, 3), alpha: parts.length > 3 ? parts[3] : 1 };
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const surface = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.alpha > 0.99) return found.rgb;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const bad = [];
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility()) continue;
    if (["SCRIPT", "STYLE", "OPTION", "title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const pair = [luminance(parse(ink).rgb), luminance(surface(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    seen += 1;
    if (ratio < 4.5) bad.push([node.textContent.trim().slice(0, 40), ink, ratio]);
  }
  return { seen, bad };
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    claims = [Finding("a" * 90, tone, tone, ["because of " + "b" * 90]) for tone in TONES]
    section = Section("Findings", ["..."], findings=claims, place="top")
    return write_report(film_results(), tmp_path_factory.mktemp("report"), sections=[section])


class Visit:
    """An open page, and what it said and asked for."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.route("**/*", self._route)
        page.goto(path.as_uri())

    def _route(self, route: Route) -> None:
        self.asked.append(route.request.url)
        route.continue_()


@pytest.fixture
def visit(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    width, scheme = getattr(request, "param", (1600, "light"))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    yield Visit(page, report)
    page.close()


def everywhere(width: int, scheme: str) -> object:
    return pytest.param((width, scheme), id=f"{width}-{scheme}")


@pytest.mark.parametrize("visit", [everywhere(w, s) for w in SIZES for s in SCHEMES], indirect=True)
def test_fits_is_legible_and_keeps_to_itself(visit: Visit, report: Path) -> None:
    page = visit.page
    assert visit.said == []
    assert visit.asked == [report.as_uri()]
    assert page.title() == "Diversity and quality of sampled responses"  # no response renamed it
    sizes = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= sizes[1]
    # Nothing sticks out of its card, but for what may be scrolled.
    out = page.evaluate(
        """() => {
             const right = (e) => e.getBoundingClientRect().right;
             return [...document.querySelectorAll('.card *')]
               .filter((e) => e.checkVisibility() && !e.closest('.scroll, pre, svg'))
               .filter((e) => right(e) > right(e.closest('.card')) + 1)
               .map((e) => e.outerHTML.slice(0, 120));
           }"""
    )
    assert out == []
    found = page.evaluate(LOW_CONTRAST)
    assert found["seen"] > 300
    assert found["bad"] == []


def test_schemes_differ(browser: Browser, report: Path) -> None:
    surfaces, inks = [], []
    for scheme in SCHEMES:
        page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(report.as_uri())
        surfaces.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        inks.append(
            page.evaluate("getComputedStyle(document.querySelector('.plot .series text')).fill")
        )
        page.close()
    assert len(set(surfaces)) == 2 and len(set(inks)) == 2


def test_narrow_and_wide_show_one_drawing_each(browser: Browser, report: Path) -> None:
    for width, shown, hidden in ((400, ".narrow", ".wide"), (1600, ".wide", ".narrow")):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(report.as_uri())
        assert page.locator(f".frontiers {shown} svg").first.is_visible()
        assert not page.locator(f".frontiers {hidden} svg").first.is_visible()
        sizes = page.evaluate(
            """(shown) => [...document.querySelectorAll(shown + ' svg text, .sweeps svg text')]
                 .map((t) => [parseFloat(getComputedStyle(t).fontSize), t.getScreenCTM()])
                 .map(([size, m]) => size * Math.hypot(m.a, m.b))""",
            f".frontiers {shown}",
        )
        assert min(sizes) >= 8.5, "text in plots becomes too small to read"
        page.close()


def shown_answers(page: Page) -> list[tuple[str, str, str]]:
    found = page.evaluate(
        """() => [...document.querySelectorAll('.answer')]
             .filter((e) => e.checkVisibility())
             .map((e) => [e.closest('.sample'), e])
             .map(([s, e]) => [s.dataset.prompt, e.dataset.run, e.dataset.sampling])"""
    )
    return [tuple(entry) for entry in found]


def test_choosing_samples(visit: Visit) -> None:
    page = visit.page
    assert {prompt for prompt, _, _ in shown_answers(page)} == {"0"}
    assert len(shown_answers(page)) == 4 * 3
    page.locator("#choose-prompt").select_option("2")
    page.locator("#choose-sampling").select_option("T=1")
    page.locator("#choose input[value='1']").uncheck()
    assert shown_answers(page) == [("2", "0", "T=1"), ("2", "2", "T=1"), ("2", "3", "T=1")]
    page.locator("#choose-sampling").select_option("")
    assert len(shown_answers(page)) == 3 * 3
    assert visit.said == []


def test_a_run_can_be_picked_out_by_keyboard(visit: Visit) -> None:
    page = visit.page
    button = page.locator(".frontiers .legend button").nth(2)
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    opacity = "(s) => getComputedStyle(document.querySelector(s)).opacity"
    assert page.evaluate(opacity, ".plot .series-2") == "1"
    assert page.evaluate(opacity, ".plot .series-1") == "0.12"
    page.keyboard.press("Enter")
    assert page.evaluate(opacity, ".plot .series-1") == "1"


def test_without_script_everything_is_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".sample").count() == 3
    assert all(page.locator(".sample").nth(n).is_visible() for n in range(3))
    assert not page.locator("#choose").is_visible()
    context.close()


def test_plots_have_names_for_screen_readers(visit: Visit) -> None:
    tree = visit.page.locator("#frontiers").aria_snapshot()
    assert 'img "Quality against diversity' in tree
    assert 'img "Reward against divergence' in tree
    headings = visit.page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))"
    )
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
