"""The page without a browser: what stands in it, what is escaped, what it asks for."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.report.page import (
    Finding,
    Section,
    Table,
    folded,
    interval,
    number,
    render,
    visible,
    write_report,
)
from nemo_gdpo.evaluation.report.text import reading
from nemo_gdpo.evaluation.results import Headline, Interval, Results, SampleResponses
from tests.evaluation.made_up_results import HOSTILE, METRICS, film_results

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Elements, their attributes and text; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.elements if name == tag)


def page(results: Results | None = None, **more: object) -> Page:
    return Page(render(results or film_results(), title="A title", **more))  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    path = write_report(film_results(), tmp_path)
    assert path == tmp_path / "report.html"
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "report.html",
        "frontier.json",
        "plots/quality_diversity.png",
        "plots/reward_divergence.png",
        "plots/sweep_quality.png",
        "plots/sweep_diversity.png",
        "plots/sweep_length.png",
        "plots/sweep_divergence.png",
    }
    first = path.read_bytes()
    assert write_report(film_results(), tmp_path).read_bytes() == first


def test_asks_for_nothing() -> None:
    for tag, attributes in page().elements:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith("#") or (tag, value) == ("link", "data:,")
    text = render(film_results(), title="t")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style and "url(" not in style


def test_responses_are_text_whatever_they_hold() -> None:
    found = page()
    assert found.count("script") == 1 and found.count("img") == 0 and found.count("textarea") == 0
    joined = "".join(found.texts)
    for response in HOSTILE:
        assert visible(response) in joined
    assert "You are a critic. <b>Bold</b>" in joined
    # One for each empty response: four runs, three prompts, the setting with the hostile texts.
    assert joined.count("(empty)") == 4 * 3


def test_names_titles_and_facts_are_text_too() -> None:
    evil = '"><script>x</script>'
    results = film_results(runs={evil: "base", "b": "dpo"})
    run = dataclasses.replace(results.runs[0], facts={evil: evil}, generations=evil)
    results = dataclasses.replace(results, runs=[run, results.runs[1]], versions={evil: evil})
    claim = Finding(evil, evil, "open", [evil])
    extra = Section(evil, [evil], [evil], [claim], Table([evil], [[evil]]))
    found = Page(render(results, title=evil, sections=[extra]))
    assert found.count("script") == 1
    assert "".join(found.texts).count(evil) > 10


def test_every_number_is_shown_with_quality_beside_diversity() -> None:
    found = page()
    joined = "".join(found.texts)
    results = film_results()
    for run in results.runs:
        for point in run.points:
            for value in point.metrics.values():
                for figure in (value.mean, value.low, value.high):
                    assert number(figure) in joined
    # The first table's columns.
    heads = joined[joined.index("Quality beside diversity") :]
    names = ("sentiment ", "semantic diversity ", "mean words ", "kl per token ")
    order = [heads.index(name) for name in names]
    assert order == sorted(order)


def test_degenerate_points_come_first() -> None:
    joined = "".join(page().texts)
    warning = joined.index("Do not take these at face value")
    assert warning < joined.index("Quality beside diversity")
    assert "61% of the responses repeat themselves; the limit is 20%; 2.0 words" in joined
    clean = dataclasses.replace(film_results(), runs=film_results().runs[:3])
    assert "face value" not in "".join(page(clean).texts)


def test_sections_of_the_caller() -> None:
    top = Section("The verdict", ["It held."], ["first", "second"], place="top")
    bottom = Section("Downstream", table=Table(["task", "acc"], [["films", "0.5"]]))
    joined = "".join(page(sections=[bottom, top]).texts)
    assert joined.index("The verdict") < joined.index("Quality beside") < joined.index("Downstream")
    assert "films" in joined


def test_without_quality_samples_sweep_or_judge() -> None:
    full = film_results()
    runs = [dataclasses.replace(run, points=run.points[:1]) for run in full.runs]
    bare = dataclasses.replace(
        full,
        runs=runs,
        samples=[],
        comparisons=[],
        headline=Headline("semantic_diversity", None, None),
    )
    joined = "".join(page(bare).texts)
    for absent in ("Frontiers", "Responses side by side", "Over the sampling", "Win rates"):
        assert absent not in joined
    # A quality stands beside diversity all the same.
    assert "sentiment" in joined


def test_a_prompt_that_a_run_did_not_answer_leaves_a_gap() -> None:
    results = film_results()
    one = results.samples[0]
    fewer = dataclasses.replace(one, responses=[r for r in one.responses if r.run != "dpo"])
    found = page(dataclasses.replace(results, samples=[fewer]))
    shown = [a["data-run"] for _, a in found.elements if a.get("class") == "answer"]
    assert sorted(set(shown)) == ["0", "2", "3"]


def test_signs_a_page_cannot_hold_are_shown() -> None:
    assert visible("a\x00b\x1b[31m\x7f\tc\n") == "a␀b␛[31m␡\tc\n"
    assert visible("\ud800") == "?"
    results = film_results(hostile=False)
    broken = [
        dataclasses.replace(
            sample,
            responses=[
                SampleResponses(r.run, r.sampling, ["\x00\x1b\ud800"], ["stop"], {})
                for r in sample.responses
            ],
        )
        for sample in results.samples
    ]
    text = render(dataclasses.replace(results, samples=broken), title="t")
    assert "\x00" not in text
    text.encode("utf-8")


def test_numbers_have_a_true_minus_and_few_figures() -> None:
    assert [number(v) for v in (-0.12345, 9.9999, 12.345, 123.456)] == [
        "−0.123",
        "10.000",
        "12.35",
        "123.5",
    ]


def test_every_metric_has_a_meaning_and_a_trap() -> None:
    for name, info in METRICS.items():
        words = reading(name, info)
        assert words.meaning.endswith(".") and words.trap.endswith(".")
    assert reading("distinct_2", METRICS["distinct_2"]) != reading(
        "distinct_k", METRICS["distinct_2"]
    )
    # A metric that nobody wrote about is explained by its kind.
    assert "noise" in reading("novelty_of_mine", METRICS["distinct_2"]).trap


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_report(film_results(), tmp_path / "file")


def test_long_texts_are_folded_between_words() -> None:
    text = "good film " * 1500
    shown, rest = folded(text)
    assert shown + rest == text
    assert 1000 < len(shown) <= 1200
    assert shown.endswith("film") or shown.endswith("good")
    assert folded("x" * 1400) == ("x" * 1400, "")
    assert folded("x" * 1401) == ("x" * 1200, "x" * 201)
    accented = "e\N{COMBINING ACUTE ACCENT}" * 1000
    assert not folded(accented)[1].startswith("\N{COMBINING ACUTE ACCENT}")


def test_a_response_of_15000_characters_and_a_blank_one() -> None:
    results = film_results()
    sample = results.samples[0]
    first = replace(
        sample.responses[0],
        outputs=["<b>" + "long " * 3000, " \n\u200b"],
        finish_reasons=["stop", "stop"],
        rewards={},
    )
    shown = replace(results, samples=[replace(sample, responses=[first])])
    page = render(shown, title="t")
    assert '<details class="rest"><summary>13' in page
    assert page.count("&lt;b&gt;long") == 1
    assert "<b>long" not in page
    assert "(blank: 3 characters that cannot be seen)" in page


def test_zero_has_no_minus_and_one_prompt_no_interval() -> None:
    assert [number(value) for value in (-0.0, -0.0001, -0.001)] == ["0.000", "0.000", "−0.001"]
    assert "(one prompt)" in interval(Interval(0.5, 0.5, 0.5, 1))
    assert "[0.400," in interval(Interval(0.5, 0.4, 0.6, 2))
