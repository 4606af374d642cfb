"""Plots: PNG files that are pictures, SVG that belongs into a page."""

from __future__ import annotations

import io
import math
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from nemo_gdpo.evaluation.report.frontier import Frontier, frontiers
from nemo_gdpo.evaluation.report.plots import frontier_figure, png, raw_svg, sweep_figure
from nemo_gdpo.evaluation.report.style import (
    DARK_RUNS,
    LIGHT,
    LIGHT_RUNS,
    PLACEHOLDERS,
    SHAPES,
    run_style,
)
from nemo_gdpo.evaluation.report.svg import page_svg
from nemo_gdpo.evaluation.report.window import Window, outside
from tests.evaluation.made_up_results import film_results

SVG = "{http://www.w3.org/2000/svg}"


def drawing(frontier: Frontier, name: str = "plot", *, narrow: bool = False) -> ElementTree.Element:
    runs = [run.name for run in film_results().runs]
    figure = frontier_figure(frontier, runs, PLACEHOLDERS, narrow=narrow, legend=False)
    text = page_svg(
        raw_svg(figure, name), name, "A <title>", "What & why", {"series-1.point-0": "dpo!"}
    )
    return ElementTree.fromstring(text)


def test_png_is_a_picture_and_the_same_each_time() -> None:
    (found, _) = frontiers(film_results())
    runs = [run.name for run in film_results().runs]
    images = [
        png(frontier_figure(found, runs, LIGHT, narrow=False, legend=True), LIGHT, "x")
        for _ in range(2)
    ]
    assert images[0] == images[1]
    with Image.open(io.BytesIO(images[0])) as image:
        assert image.size == (896, 656)  # 5.6 x 4.1 inches of 160 dots
        colours = {image.convert("RGB").getpixel((5, 5))}
        assert colours == {(255, 255, 255)}
        drawn = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert drawn is not None
    present = {colour for _, colour in drawn}
    for index in range(3):  # the fourth run is hollow: its outline is blended
        wanted = LIGHT_RUNS[run_style(index).colour].lstrip("#")
        assert tuple(bytes.fromhex(wanted)) in present


def test_svg_is_named_themed_and_has_unique_ids() -> None:
    (found, _) = frontiers(film_results())
    first, second = drawing(found, "one"), drawing(found, "two", narrow=True)
    for root in (first, second):
        name = (root.get("aria-labelledby") or "").split("-")[0]
        ids = {e.get("id") for e in root.iter() if e.get("id")}
        assert all(str(own).startswith(f"{name}-") for own in ids)
        text = ElementTree.tostring(root, encoding="unicode")
        used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
        assert used and used <= ids
        assert "#fe0" not in text and "var(--run-0)" in text and "var(--ink)" in text
        assert root.get("role") == "img"
        assert "font-family" not in text
        assert "<script" not in text and "http://" not in text.replace("http://www.w3.org/", "")
    assert first.find(f"{SVG}title").text == "A <title>"  # type: ignore[union-attr]
    assert first.find(f"{SVG}desc").text == "What & why"  # type: ignore[union-attr]


def test_every_run_can_be_picked_out_and_points_have_tips() -> None:
    (found, _) = frontiers(film_results())
    classes = [e.get("class", "") for e in drawing(found).iter()]
    for index in range(4):
        assert classes.count(f"series series-{index}") >= 4
    tips = [e.text for e in drawing(found).iter(f"{SVG}title")]
    assert "dpo!" in tips


def test_a_run_keeps_its_look_where_another_is_missing() -> None:
    # The base has no divergence, so the second frontier begins with the second run.
    second = frontiers(film_results())[1]
    classes = {e.get("class") for e in drawing(second).iter()}
    assert "series series-1" in classes and "series series-0" not in classes


def test_points_far_off_are_drawn_at_the_edge_only_when_flagged() -> None:
    second = frontiers(film_results())[1]
    window = Window.around(second.points)
    assert window is not None
    assert {point.run for point in outside(second.points)} == {"gdpo-released"}
    for point in second.points:
        x, y = window.nearest(point)
        assert window.left < x < window.right and window.bottom < y < window.top
        if not point.flags:
            assert (x, y) == (point.x.mean, point.y.mean)
            assert window.left < point.x.low and point.x.high < window.right
    sound = [point for point in second.points if not point.flags]
    assert Window.around(sound) is None
    assert Window.around([]) is None


def test_names_that_look_like_mathematics_stay_text() -> None:
    results = film_results(runs={"cost $a_b$ {x}": "base", "x^2 $": "dpo"})
    (found, _) = frontiers(results)
    names = [run.name for run in results.runs]
    png(frontier_figure(found, names, LIGHT, narrow=False, legend=True), LIGHT, "x")
    raw = raw_svg(frontier_figure(found, names, LIGHT, narrow=False, legend=True), "x")
    assert "cost $a_b$ {x}" in raw


def test_sweep_has_a_line_for_each_run_with_a_value() -> None:
    raw = raw_svg(sweep_figure(film_results(), "kl_per_token", LIGHT, legend=False), "s")
    assert 'id="series-1.line"' in raw and 'id="series-0.line"' not in raw
    assert "T=0.7" in raw and "nats, lower is better" in raw


def test_styles_differ_in_more_than_colour() -> None:
    looks = [(run_style(n).colour, run_style(n).shape) for n in range(72)]
    assert len(set(looks)) == 72
    for n in range(20):
        assert run_style(n).shape != run_style(n + 1).shape
    for _, corners in SHAPES:
        assert max(math.hypot(x, y) for x, y in corners) == pytest.approx(1.0, abs=1e-3)


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("colours", "surface"), [(LIGHT_RUNS, "#ffffff"), (DARK_RUNS, "#171b21")], ids=["light", "dark"]
)
def test_colours_stand_out_from_the_surface(colours: tuple[str, ...], surface: str) -> None:
    for colour in colours:
        light, dark = sorted((luminance(colour), luminance(surface)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour
