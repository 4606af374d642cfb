"""The report of a run of rounds: a table for the terminal, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nemo_gdpo.config.rounds import RoundsConfig
from nemo_gdpo.evaluation.report.numbers import number, plain_number
from nemo_gdpo.evaluation.report.page import visible
from nemo_gdpo.evaluation.report.plots import curve_figure, raw_svg
from nemo_gdpo.evaluation.report.style import DARK_RUNS, LIGHT_RUNS, PLACEHOLDERS
from nemo_gdpo.evaluation.report.svg import page_svg
from nemo_gdpo.generation.rows import StoredPrompt
from nemo_gdpo.io.files import write_output
from nemo_gdpo.io.jsonl import read_objects
from nemo_gdpo.rounds.answers import read_answers
from nemo_gdpo.rounds.metrics import MET
from nemo_gdpo.rounds.plan import Stage
from nemo_gdpo.rounds.run import LINES
from nemo_gdpo.rounds.settings import Settings

FILE_NAME = "report.html"
SAMPLES, ANSWERS, CHARACTERS = 3, 3, 300
"""Prompts, answers of each in each round, and characters of each that are shown."""
MEANINGS = {
    "reward": "mean of complete answers",
    "met": "share of answers that meet all constraints",
    "complete": "share of answers that end by themselves",
    "entropy": "mean of minus log p of an answer, nats",
    "kl": "log p minus the reference's, at the first update, nats",
    "semantic_diversity": "mean distance of a prompt's answers",
    "distinct_2": "different word pairs of a prompt's answers",
    "words": "mean length of complete answers",
    "log_z": "estimate at the last update, nats",
    "loss": "at the last update",
    "replayed": "share of answers from earlier rounds",
    "staleness_mean": "trainings since an answer was sampled",
}
"""What has a curve -> what it is."""


@dataclass(frozen=True)
class Curve:
    """One drawing."""

    title: str
    meaning: str
    svg: Markup


def show(config: RoundsConfig, *, printed: bool = True) -> None:
    """Write the page from rounds.jsonl, and print the table.

    Raises:
        UserError, RunError: a file cannot be read or written.
    """
    settings = Settings(config)
    lines = [plain for _, _, plain in read_objects(settings.output / LINES)]
    path = write_output(settings.output / FILE_NAME, page(settings, lines))
    if printed:
        print(table(lines))
        print(f"rounds: {settings.output / LINES}\nreport: {path}", flush=True)


def names_of(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Numbers that some round has, in their order."""
    found = dict.fromkeys(name for line in lines for name in line)
    return [name for name in found if name != "round" and _is_number(lines, name)]


def _is_number(lines: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(line.get(name), int | float) for line in lines)


def cell(value: object) -> str:
    """A number of the table; a dash where there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return plain_number(value) if isinstance(value, float) else "-"


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row a number, a column a round."""
    rows = [["round", *(str(line["round"]) for line in lines)]]
    rows += [[name, *(cell(line.get(name)) for line in lines)] for name in names_of(lines)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if not place else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The drawings of what has at least one value."""
    constraints = [name for line in lines[:1] for name in line if name.startswith(MET)]
    named = {**MEANINGS, **dict.fromkeys(constraints, "share of answers that meet it")}
    found = []
    for place, (name, meaning) in enumerate(named.items()):
        points = [
            (int(line["round"]), float(line[name]))
            for line in lines
            if isinstance(line.get(name), int | float)
        ]
        if points:
            found.append(_curve(f"curve-{place}", name, meaning, points))
    return found


def _curve(key: str, name: str, meaning: str, points: Sequence[tuple[int, float]]) -> Curve:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    raw = raw_svg(curve_figure(xs, ys, "round", PLACEHOLDERS), key)
    said = "; ".join(f"round {x}: {number(y)}" for x, y in points)
    title = name.replace("_", " ")
    # Written by this package; the words in it are escaped where it is put together.
    return Curve(title, meaning, Markup(page_svg(raw, key, title, said, {"series-0.line": said})))


def page(settings: Settings, lines: Sequence[Mapping[str, Any]]) -> str:
    """The whole page. What models wrote is untrusted: the template escapes everything."""
    environment = Environment(
        loader=PackageLoader("nemo_gdpo.rounds", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (files("nemo_gdpo.evaluation.report") / "templates" / "report.css").read_text("utf-8")
    # The line's colour, which the evaluation's page defines for as many runs as it has.
    css += f":root {{ --run-0: {LIGHT_RUNS[0]}; }}\n"
    css += f"@media (prefers-color-scheme: dark) {{ :root {{ --run-0: {DARK_RUNS[0]}; }} }}\n"
    name = settings.config.objective.name
    return environment.get_template("rounds.html.j2").render(
        title="Rounds",
        lead=f"{len(lines)} rounds with objective={name}; {settings.output.name}",
        css=Markup(css),
        curves=curves(lines),
        lines=lines,
        names=names_of(lines),
        cell=cell,
        samples=_samples(settings, [int(line["round"]) for line in lines]),
    )


def _samples(settings: Settings, rounds: Sequence[int]) -> list[dict[str, Any]]:
    """Some answers to the prompts that the first round has, of the first and of the last round."""
    shown = sorted({rounds[0], rounds[-1]}) if rounds else []
    parts: dict[str, list[dict[str, Any]]] = {}
    prompts: dict[str, str] = {}
    for one in shown:
        for line in read_answers(Path(settings.place(Stage(one, "score")))):
            if line.id in prompts or (one == shown[0] and len(prompts) < SAMPLES):
                prompts[line.id] = _told(line.prompt)
                texts = [_cut(answer.text) for answer in line.answers[:ANSWERS]]
                parts.setdefault(line.id, []).append({"round": one, "texts": texts})
    return [{"prompt": prompts[name], "parts": parts[name]} for name in prompts]


def _told(prompt: StoredPrompt) -> str:
    return _cut(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def _cut(text: str) -> str:
    return visible(text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…")
