"""The result as files: a Markdown table and JSON with every number, plots, and the page."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from examples.film_reviews.experiment.arms import BY_NAME, Job
from examples.film_reviews.experiment.pooling import pool
from examples.film_reviews.experiment.settings import Settings
from examples.film_reviews.experiment.verdict import Verdict, verdicts
from nemo_gdpo.evaluation.report.frontier import frontiers
from nemo_gdpo.evaluation.report.page import Finding, Section, write_report
from nemo_gdpo.evaluation.results import Interval, Results, write_results

TITLE = "Film reviews: which objective keeps diversity?"
INTERVALS = (
    "Every figure is a mean over prompts and training seeds. The brackets are the interval that "
    "holds 95% of the means when seeds and prompts are drawn anew (percentile bootstrap); where an "
    "arm has one seed it covers the choice of prompts only. So few seeds tell little about another "
    "training."
)
RULE = (
    "Computed from differences between arms, prompt by prompt and seed by seed, drawn anew "
    "together. An outcome follows from the intervals alone: held when the difference lies beyond 0 "
    "on the claimed side at every setting compared, not decided when the interval holds 0. "
    "Settings at which one of the two arms looks degenerate are not compared."
)
COLUMNS = (
    ("quality", None),
    ("diversity", None),
    ("metric", "distinct_2"),
    ("metric", "self_bleu"),
    ("metric", "length_words"),
    ("divergence", None),
    ("metric", "kl_token"),
    ("metric", "valid"),
)
"""Columns of the first table; the second has the rest."""


def publish(
    found: Mapping[str, Mapping[int, Results]],
    *,
    settings: Settings,
    run_dir: Path,
    results_dir: Path,
    notes: Sequence[str],
    noted: Mapping[Job, Mapping[str, Any]],
) -> Path:
    """Write everything; returns the page's path.

    Args:
        found: arm -> seed -> results of one run.
        settings: that all had.
        run_dir: gets `evaluation.json`, `report.html`, `frontier.json` and `plots/`.
        results_dir: gets `results.md`, `results.json` and `plots/`, to be kept with the code.
        notes: what was left out, on which machine.
        noted: what each job noted.
    """
    pooled = pool(found, settings.resamples)
    judged = verdicts(found, settings.resamples)
    write_results(pooled, run_dir)
    sections = [_verdict_section(judged), Section("How this was made", points=notes)]
    page = write_report(pooled, run_dir, title=TITLE, sections=sections, intervals=INTERVALS)
    results_dir.mkdir(parents=True, exist_ok=True)
    text = markdown(pooled, judged, settings=settings, notes=notes, noted=noted)
    (results_dir / "results.md").write_text(text, encoding="utf-8")
    everything = {
        "schema": 1,
        "settings": settings.plain(),
        "notes": list(notes),
        "arms": {name: {**BY_NAME[name].objective, "seeds": sorted(found[name])} for name in found},
        "jobs": {job.name: _job_record(facts) for job, facts in noted.items()},
        "verdicts": [dataclasses.asdict(verdict) for verdict in judged],
        "pooled": json.loads(pooled.to_json()) | {"samples": []},
        "frontiers": json.loads((run_dir / "frontier.json").read_text())["frontiers"],
    }
    (results_dir / "results.json").write_text(
        json.dumps(_relative(everything, run_dir), ensure_ascii=False, allow_nan=False, indent=1)
        + "\n",
        encoding="utf-8",
    )
    shutil.rmtree(results_dir / "plots", ignore_errors=True)
    shutil.copytree(run_dir / "plots", results_dir / "plots")
    return page


def _relative(value: Any, run_dir: Path) -> Any:
    """Paths as seen from `run_dir`: where they lie on one machine does not matter."""
    if isinstance(value, dict):
        return {key: _relative(inner, run_dir) for key, inner in value.items()}
    if isinstance(value, list):
        return [_relative(inner, run_dir) for inner in value]
    return value.replace(f"{run_dir}/", "") if isinstance(value, str) else value


def _job_record(noted: Mapping[str, Any]) -> dict[str, Any]:
    last = noted.get("last_step", {})
    kept = ("loss", "grad_norm", "rewards/margins", "adpo/queries_total", "adpo/query_rate")
    return {
        "seconds": noted["seconds"],
        "pairs": noted.get("pairs"),
        **{name: last[name] for name in kept if name in last},
    }


def _verdict_section(judged: Sequence[Verdict]) -> Section:
    return Section(
        "What held and what did not",
        [RULE],
        findings=[Finding(v.claim, v.outcome, _tone(v.outcome), v.evidence) for v in judged],
        place="top",
    )


def _tone(outcome: str) -> Literal["yes", "no", "open"]:
    if outcome == "held":
        return "yes"
    return "no" if outcome.startswith(("the opposite", "did not hold")) else "open"


# -- Markdown --------------------------------------------------------------------------------------


def markdown(
    pooled: Results,
    judged: Sequence[Verdict],
    *,
    settings: Settings,
    notes: Sequence[str],
    noted: Mapping[Job, Mapping[str, Any]],
) -> str:
    """The page's numbers as a file that a diff can show."""
    parts = [
        "# The experiment",
        "",
        "Written by `make experiment`. Every figure is a mean over prompts and seeds; brackets are "
        "95% bootstrap intervals over both (over prompts alone where there is one seed).",
        "",
        *[f"- {note}" for note in notes],
        "",
        "## What held and what did not",
        "",
        RULE,
        "",
        *_verdict_table(judged),
        "",
        *_evidence(judged),
        "",
        "## Every arm at every temperature",
        "",
        *_table(pooled, _columns(pooled)),
        "",
        *_flags(pooled),
        "",
        "## Frontiers",
        "",
        *_frontiers(pooled),
        "",
        "## The other metrics",
        "",
        *_table(pooled, [n for n in _present(pooled) if n not in _columns(pooled)]),
        "",
        "## Settings",
        "",
        *_settings(settings),
        "",
        "| arm | seeds | settings |",
        "|---|---|---|",
        *[
            f"| {run.name} | {', '.join(map(str, run.facts['seeds']))} | {_objective(run.name)} |"
            for run in pooled.runs
        ],
        "",
        "## Jobs",
        "",
        *_jobs(noted),
        "",
    ]
    return "\n".join(parts)


def _verdict_table(judged: Sequence[Verdict]) -> list[str]:
    rows = [f"| {_cell(v.claim)} | **{v.outcome}** |" for v in judged]
    return ["| claim | outcome |", "|---|---|", *rows]


def _evidence(judged: Sequence[Verdict]) -> list[str]:
    lines = []
    for verdict in judged:
        lines += [f"- {verdict.claim}: **{verdict.outcome}**"]
        lines += [f"  - {line}" for line in verdict.evidence]
    return lines


def _columns(pooled: Results) -> list[str]:
    headline = pooled.headline
    by_role = {
        "quality": headline.quality,
        "diversity": headline.diversity,
        "divergence": headline.divergence,
    }
    names = [by_role[role] if name is None else name for role, name in COLUMNS]
    present = _present(pooled)
    return [name for name in names if name is not None and name in present]


def _present(pooled: Results) -> list[str]:
    found = {name for run in pooled.runs for point in run.points for name in point.metrics}
    return [name for name in pooled.metrics if name in found]


def _table(pooled: Results, names: Sequence[str]) -> list[str]:
    heads = [_head(pooled, name) for name in names]
    lines = [f"| arm | sampling | {' | '.join(heads)} |", "|---" * (len(names) + 2) + "|"]
    for run in pooled.runs:
        for point in run.points:
            cells = [_interval(point.metrics.get(name)) for name in names]
            mark = " (!)" if point.flags else ""
            lines.append(
                f"| {_cell(run.name)}{mark} | {point.sampling.label()} | {' | '.join(cells)} |"
            )
    return lines


def _head(pooled: Results, name: str) -> str:
    info = pooled.metrics[name]
    arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[info.direction]
    unit = f" ({info.unit})" if info.unit else ""
    return _cell(name.replace("_", " ") + arrow + unit)


def _interval(value: Interval | None) -> str:
    if value is None:
        return "–"
    digits = 1 if abs(value.mean) >= 100 else 2 if abs(value.mean) >= 10 else 3
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _flags(pooled: Results) -> list[str]:
    lines = [
        f"- {run.name} at {point.sampling.label()}: {'; '.join(f.message for f in point.flags)}"
        for run in pooled.runs
        for point in run.points
        if point.flags
    ]
    head = "(!) looks degenerate, so its diversity is not to be taken at face value:"
    return [head, "", *lines] if lines else ["No arm looks degenerate."]


def _frontiers(pooled: Results) -> list[str]:
    lines = []
    for one in frontiers(pooled):
        front = ", ".join(point.label() for point in one.front()) or "none"
        lines += [f"![{one.title}](plots/{one.name}.png)", ""]
        lines += [f"{one.title}: on the front {front}.", ""]
        lines += [f"- {caveat}" for caveat in one.caveats] + [""]
    return lines


def _settings(settings: Settings) -> list[str]:
    rows = [f"| {key.replace('_', ' ')} | {value} |" for key, value in settings.plain().items()]
    return ["| setting | value |", "|---|---|", *rows]


def _objective(name: str) -> str:
    objective = BY_NAME[name].objective
    if not objective:
        return "not trained"
    rest = ", ".join(f"{key} {value}" for key, value in objective.items() if key != "name")
    return f"{objective['name']}: {rest}"


def _jobs(noted: Mapping[Job, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| job | pairs | labels asked | last loss | last margin | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for job, facts in noted.items():
        short = _job_record(facts)
        asked = short.get("adpo/queries_total")
        cells = [
            job.name,
            str(short["pairs"] or "–"),
            "–" if asked is None else f"{asked:.0f}",
            *[
                "–" if short.get(key) is None else f"{short[key]:z.3f}"
                for key in ("loss", "rewards/margins")
            ],
            f"{sum(facts['seconds'].values()):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
