"""The page that a reader of an evaluation opens: one self-contained HTML file, its plots as PNGs
beside it, and the frontiers' numbers as JSON.

The page asks no other file or host for anything. What models wrote is untrusted: the template
escapes everything, and the page's own policy forbids any script but the one inside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nemo_gdpo.evaluation.harness.lm_eval import lm_eval_rows, read_answers
from nemo_gdpo.evaluation.metrics.metric import Reading
from nemo_gdpo.evaluation.metrics.validity import check_response
from nemo_gdpo.evaluation.report import across
from nemo_gdpo.evaluation.report import text as report_text
from nemo_gdpo.evaluation.report.frontier import (
    Frontier,
    FrontierPoint,
    by_run,
    frontiers,
    length_metric_of,
    write_frontiers,
)
from nemo_gdpo.evaluation.report.notices import notices
from nemo_gdpo.evaluation.report.numbers import ONE_PROMPT, has_interval, number
from nemo_gdpo.evaluation.report.plots import (
    frontier_figure,
    png,
    raw_svg,
    sampling_labels,
    sweep_figure,
)
from nemo_gdpo.evaluation.report.style import (
    DARK_RUNS,
    LIGHT,
    LIGHT_RUNS,
    PLACEHOLDERS,
    run_style,
)
from nemo_gdpo.evaluation.report.svg import page_svg
from nemo_gdpo.evaluation.report.window import outside
from nemo_gdpo.evaluation.results import Interval, Point, Results, Sample, SampleResponses
from nemo_gdpo.generation.rows import StoredPrompt, Turn
from nemo_gdpo.io.files import write_output

FILE_NAME = "report.html"
_KINDS = ("quality", "diversity", "length", "divergence")
SHOWN_CHARACTERS = 1200
"""Of a long text; the rest is folded."""
FOLDED_AT_LEAST = 200
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Table:
    """Cells of a section; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """A claim, and what became of it."""

    claim: str
    outcome: str
    tone: Literal["yes", "no", "open"]
    """How the outcome is marked."""
    evidence: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """Something that a caller adds to the page: a verdict, downstream scores."""

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    """A list below the paragraphs."""
    findings: Sequence[Finding] = ()
    table: Table | None = None
    place: Literal["top", "bottom"] = "bottom"


@dataclass(frozen=True)
class _Plot:
    """A drawing in two widths, and the words for those who cannot see it."""

    name: str
    wide: Markup
    narrow: Markup
    notes: Sequence[str] = ()
    """What the drawing left at its edge, beside the notes of the frontier."""


@dataclass(frozen=True)
class _Row:
    """One point in the tables."""

    run: str
    style: Any
    sampling: str
    point: Point
    flags: Sequence[str]
    front: bool


@dataclass(frozen=True)
class _Page:
    """Values that the template reads."""

    title: str
    lead: str
    results: Results
    rows: Sequence[_Row]
    headline: Sequence[str]
    """Metrics of the table on top."""
    columns: Mapping[str, Sequence[str]]
    """Kind -> its metrics, for the table of all."""
    frontiers: Sequence[tuple[Frontier, _Plot]]
    sweeps: Sequence[_Plot]
    sampling: Sequence[str]
    top: Sequence[Section]
    bottom: Sequence[Section]
    readings: Mapping[str, Reading]
    notices: Sequence[str]
    """What a reader has to know first."""
    settings: str
    css: Markup
    script: Markup
    policy: str
    texts: Mapping[str, str] = field(default_factory=dict)


def write_report(
    results: Results,
    output_dir: Path,
    *,
    title: str = "Diversity and quality of sampled responses",
    sections: Sequence[Section] = (),
    intervals: str | None = None,
) -> Path:
    """Write `report.html`, `frontier.json` and `plots/*.png`; `evaluation.json` stays as it is.

    Args:
        results: of an evaluation.
        output_dir: made if needed. Files of an earlier report are replaced.
        title: of the page.
        sections: the caller's own sections, above or below the numbers.
        intervals: what the brackets are; None for a bootstrap over prompts.

    Returns:
        The page's path.

    Raises:
        UserError: the directory cannot be written.
    """
    sections = [*sections, *_across_runs(results), *_downstream(output_dir)]
    found = frontiers(results)
    write_frontiers(found, output_dir)
    runs = [run.name for run in results.runs]
    for one in found:
        figure = frontier_figure(one, runs, LIGHT, narrow=False, legend=True)
        write_output(output_dir / "plots" / f"{one.name}.png", png(figure, LIGHT, one.name))
    for metric in _sweep_metrics(results):
        figure = sweep_figure(results, metric, LIGHT, legend=True)
        name = _sweep_name(results, metric)
        write_output(output_dir / "plots" / f"{name}.png", png(figure, LIGHT, name))
    page = render(results, title=title, sections=sections, found=found, intervals=intervals)
    return write_output(output_dir / FILE_NAME, page)


def render(
    results: Results,
    *,
    title: str,
    sections: Sequence[Section] = (),
    found: Sequence[Frontier] | None = None,
    intervals: str | None = None,
) -> str:
    """The page's HTML."""
    drawn = frontiers(results) if found is None else found
    css, script = _asset("report.css") + _theme_css(), _asset("report.js")
    level = results.settings.get("bootstrap", {}).get("level", 0.95)
    page = _Page(
        title=title,
        lead=_summary_line(results),
        results=results,
        rows=_rows(results, drawn),
        headline=_headline(results),
        columns=_columns(results),
        frontiers=[(one, _frontier_plot(one, [run.name for run in results.runs])) for one in drawn],
        sweeps=[_sweep_plot(results, metric) for metric in _sweep_metrics(results)],
        sampling=sampling_labels(results),
        top=[section for section in sections if section.place == "top"],
        bottom=[section for section in sections if section.place == "bottom"],
        readings={name: report_text.reading(name, info) for name, info in results.metrics.items()},
        notices=notices(results),
        settings=json.dumps(results.settings, indent=1, ensure_ascii=False),
        css=Markup(css),
        script=Markup(script),
        policy=_content_security_policy(script),
        texts={
            "intervals": intervals or report_text.INTERVALS.format(level=f"{level:.0%}"),
            "paired": report_text.PAIRED,
            "win_rates": report_text.WIN_RATES,
        },
    )
    return _environment().get_template("report.html.j2").render(page=page)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nemo_gdpo.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["interval"] = interval
    environment.filters["visible"] = visible
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    environment.filters["folded"] = folded
    environment.filters["blank"] = lambda text: check_response(text).empty
    environment.filters["turns"] = turns
    environment.filters["metadata"] = _metadata
    environment.filters["others"] = _name_or_count
    environment.globals["run_style"] = run_style
    environment.globals["wanted"] = _responses_of
    return environment


def interval(value: Interval | None) -> Markup:
    """Mean with its interval, or a dash."""
    if value is None:
        return Markup('<td class="none">\N{EN DASH}</td>')
    if not has_interval(value):
        return Markup('<td><b>{}</b> <span class="range">({})</span></td>').format(
            number(value.mean), ONE_PROMPT
        )
    return Markup('<td><b>{}</b> <span class="range">[{},&nbsp;{}]</span></td>').format(
        number(value.mean), number(value.low), number(value.high)
    )


def visible(text: str) -> str:
    """A model's text as it is, with signs in the place of what a page cannot hold."""
    shown = _UNSEEN.sub(
        lambda match: chr(0x2421) if match[0] == "\x7f" else chr(0x2400 + ord(match[0])), text
    )
    return shown.encode("utf-8", errors="replace").decode("utf-8")


def folded(text: str) -> tuple[str, str]:
    """(what is shown of a text, what a reader has to unfold), cut between words if it can be."""
    if len(text) <= SHOWN_CHARACTERS + FOLDED_AT_LEAST:
        return text, ""
    spaces = [text.rfind(space, 0, SHOWN_CHARACTERS) for space in " \n"]
    cut = max(*spaces, 0)
    cut = cut if cut > SHOWN_CHARACTERS // 2 else SHOWN_CHARACTERS
    while cut < len(text) and unicodedata.category(text[cut])[0] == "M":
        cut += 1  # marks stay with their letter
    return text[:cut], text[cut:]


def turns(prompt: StoredPrompt) -> list[Turn]:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _metadata(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _responses_of(sample: Sample, run: str, sampling: str) -> SampleResponses | None:
    """The responses of one run at one sampling setting, or None."""
    for responses in sample.responses:
        if responses.run == run and responses.sampling.label() == sampling:
            return responses
    return None


# -- what stands in the tables ---------------------------------------------------------------------


def _summary_line(results: Results) -> str:
    points = [point for run in results.runs for point in run.points]
    parts = [
        _count(len(results.runs), "run"),
        _count(len(sampling_labels(results)), "sampling setting"),
        _span(sorted({point.num_prompts for point in points}), "prompt"),
        _span(sorted({point.num_samples for point in points}), "response") + " to each",
    ]
    return f"{', '.join(parts)}."


def _count(amount: int, what: str) -> str:
    return f"{amount} {what}" if amount == 1 else f"{amount} {what}s"


def _span(values: Sequence[int], what: str) -> str:
    if not values:
        return f"no {what}s"
    if len(values) == 1:
        return _count(values[0], what)
    return f"{values[0]} to {values[-1]} {what}s"


def _headline(results: Results) -> list[str]:
    headline = results.headline
    quality = headline.quality or next(
        (name for name, info in results.metrics.items() if info.kind == "quality"), None
    )
    names = (quality, headline.diversity, length_metric_of(results), headline.divergence)
    return [name for name in names if name is not None]


def _columns(results: Results) -> dict[str, list[str]]:
    present = {name for run in results.runs for point in run.points for name in point.metrics}
    columns = {
        kind: [n for n, info in results.metrics.items() if info.kind == kind and n in present]
        for kind in _KINDS
    }
    return {kind: names for kind, names in columns.items() if names}


def _sweep_metrics(results: Results) -> list[str]:
    """The headline metrics that any point has; none where there is one setting only."""
    if len(sampling_labels(results)) < 2:
        return []
    present = {name for run in results.runs for point in run.points for name in point.metrics}
    return [name for name in _headline(results) if name in present]


def _sweep_name(results: Results, metric: str) -> str:
    """The plot's name, by the metric's kind (one each in the headline): metric names are free."""
    return f"sweep_{results.metrics[metric].kind}"


def _downstream(output_dir: Path) -> list[Section]:
    """Sections of what `nemo-gdpo evaluate lm-eval` left in this directory."""
    answers = read_answers(output_dir)
    if not answers:
        return []
    header = ["model", "task", "metric", "value", "standard error", "shots", "documents"]
    return [
        Section(
            "Downstream tasks",
            [
                "By lm-eval, offline. The standard error covers the documents of a task, not "
                "another training seed. Figures from a part of a task's documents are not the "
                "task's figures."
            ],
            table=Table(header, lm_eval_rows(answers)),
        )
    ]


def _across_runs(results: Results) -> list[Section]:
    """Sections on diversity at matched length and on similarity across models."""
    matched, alike = results.length_matched, results.similarities
    found = []
    if matched:
        table = Table(across.MATCHED_HEADER, across.matched_rows(matched))
        counts = [across.matched_counts(item) for item in matched]
        found.append(Section(across.MATCHED_TITLE, [across.MATCHED], counts, table=table))
    if alike:
        names = dict.fromkeys(item.run for item in alike)
        table = Table(("sampling", "run", *names), across.similarity_rows(alike))
        found.append(Section(across.SIMILARITY_TITLE, [across.SIMILARITY], table=table))
    return found


def _rows(results: Results, drawn: Sequence[Frontier]) -> list[_Row]:
    first = drawn[0] if drawn else None
    front = {p.label() for p in first.front()} if first and first.is_compared else set()
    return [
        _Row(
            run.name,
            run_style(index),
            point.sampling.label(),
            point,
            [flag.message for flag in point.flags],
            f"{run.name} {point.sampling.label()}" in front,
        )
        for index, run in enumerate(results.runs)
        for point in run.points
    ]


# -- plots -----------------------------------------------------------------------------------------


def _frontier_plot(frontier: Frontier, runs: Sequence[str]) -> _Plot:
    tips = {
        f"series-{runs.index(run)}.point-{place}": _tooltip(frontier, point)
        for run in runs
        for place, point in enumerate(p for p in frontier.points if p.run == run)
    }
    on_it = frontier.front() if frontier.is_compared else ()
    front = ", ".join(point.label() for point in on_it) or "no point"
    description = (
        f"{len(frontier.points)} points, {frontier.x.metric.replace('_', ' ')} from left to right "
        f"and {frontier.y.metric.replace('_', ' ')} upwards, each with its interval on both axes. "
        f"On the Pareto front: {front}. The table below has every number."
    )
    drawings = [
        page_svg(
            raw_svg(
                frontier_figure(frontier, runs, PLACEHOLDERS, narrow=narrow, legend=False), name
            ),
            name,
            frontier.title,
            description,
            tips,
        )
        for narrow, name in ((False, frontier.name), (True, f"{frontier.name}_narrow"))
    ]
    return _Plot(frontier.name, Markup(drawings[0]), Markup(drawings[1]), _edge_notes(frontier))


def _edge_notes(frontier: Frontier) -> list[str]:
    far = outside(frontier.points)
    if not far:
        return []
    return [f"Far outside, so drawn at the edge: {by_run(far)}. The tables have their figures."]


def _name_or_count(labels: Sequence[str]) -> str:
    """`a`, `a and b`, `a and 3 more`."""
    if len(labels) <= 2:
        return " and ".join(labels)
    return f"{labels[0]} and {len(labels) - 1} more"


def _tooltip(frontier: Frontier, point: FrontierPoint) -> str:
    values = "; ".join(
        f"{axis.metric.replace('_', ' ')} {number(value.mean)} "
        + (
            f"[{number(value.low)}, {number(value.high)}]"
            if has_interval(value)
            else f"({ONE_PROMPT})"
        )
        for axis, value in ((frontier.x, point.x), (frontier.y, point.y))
    )
    return f"{point.label()}: {values}"


def _sweep_plot(results: Results, metric: str) -> _Plot:
    words = metric.replace("_", " ")
    title = f"{words} over the sampling settings"
    description = f"One line a run at {', '.join(sampling_labels(results))}. Numbers are in tables."
    name = _sweep_name(results, metric)
    raw = raw_svg(sweep_figure(results, metric, PLACEHOLDERS, legend=False), name)
    drawing = Markup(page_svg(raw, name, title, description, {}))
    return _Plot(name, drawing, drawing)


# -- the page's own files --------------------------------------------------------------------------


def _asset(name: str) -> str:
    return (files("nemo_gdpo.evaluation.report") / "templates" / name).read_text(encoding="utf-8")


def _theme_css() -> str:
    """The runs' colours, for both schemes, from the same table as the PNGs'."""

    def variables(colours: Iterable[str]) -> str:
        return " ".join(f"--run-{n}: {colour};" for n, colour in enumerate(colours))

    return (
        f":root {{ {variables(LIGHT_RUNS)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK_RUNS)} }} }}\n"
    )


def _content_security_policy(script: str) -> str:
    """Content-Security-Policy: nothing is loaded, and only the page's own script runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
