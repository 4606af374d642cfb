"""The tables of docs/evidence.md, as lines of Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from examples.film_reviews.evidence.answer import differences
from examples.film_reviews.evidence.claims import NOT_RUN, Judged, Verdict
from examples.film_reviews.evidence.curves import Comparison
from examples.film_reviews.evidence.protocol import GROUPS
from examples.film_reviews.evidence.records import BASE, Records

COLUMNS = (
    {
        "reward": "reward ↑",
        "kl": "KL, nats",
        "semantic_diversity": "semantic diversity ↑",
        "distinct_2": "distinct-2 ↑",
        "self_bleu": "self-BLEU ↓",
        "vendi": "Vendi ↑",
    },
    {
        "coverage": "probable sentences kept ↑",
        "valid": "valid ↑",
        "perplexity": "perplexity ↓",
        "length_words": "words",
    },
)
"""Metrics of the two tables of arms, and their heads."""
NONE = "–"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; a bar in a cell is escaped."""
    lines = [list(heads), ["---"] * len(heads)]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def claims(judged: Judged) -> list[str]:
    """A table for each group, with outcome, margin, interval, seeds and notes."""
    lines: list[str] = []
    for group, title in GROUPS.items():
        rows = [_claim(v) for v in judged.verdicts if v.claim.group == group]
        if rows:
            heads = ("claim", "outcome", "difference [95 %]", "margin", "seeds", "to know")
            lines += [f"### {title}", "", *table(heads, rows), ""]
    return lines


def _claim(verdict: Verdict) -> list[str]:
    text = verdict.claim.text
    return [
        f"**{text}**" if verdict.claim.main else text,
        verdict.outcome if verdict.outcome == NOT_RUN else f"**{verdict.outcome}**",
        differences(verdict).replace("; ", "<br>") or "not measured",
        f"{verdict.claim.margin:g}",
        str(len(verdict.seeds)) if verdict.seeds else NONE,
        "<br>".join(verdict.notes) or NONE,
    ]


def arms(comparison: Comparison) -> list[str]:
    """Every metric of every arm at its last update and temperature 1, in two tables."""
    lines = [
        f"Means with 95 % intervals over seeds and prompts; {NONE}: not measured. One seed's "
        "interval covers the choice of prompts only.",
        "",
    ]
    records = comparison.records
    for number, columns in enumerate(COLUMNS):
        rows = []
        for arm in _in_order(records):
            # The labels stand in the first table only.
            extra = [_labels(records, arm)] if number == 0 else []
            cells = [_cell(comparison, arm, metric) for metric in columns]
            rows.append([f"`{arm}`", str(len(records.by_arm[arm])), *extra, *cells])
        heads = ["arm", "seeds", *(["labels"] if number == 0 else []), *columns.values()]
        lines += [*table(heads, rows), ""]
    return lines[:-1]


def _in_order(records: Records) -> list[str]:
    """The untouched model first, then families together."""
    return sorted(records.by_arm, key=lambda arm: (arm != BASE, records.family(arm), arm))


def _labels(records: Records, arm: str) -> str:
    return NONE if arm == BASE else f"{records.labels(arm):,.0f}"


def _cell(comparison: Comparison, arm: str, metric: str) -> str:
    at = comparison.records.last(arm)
    value = None if at is None else comparison.figure(arm, at, metric)
    return NONE if value is None else value.plain()


def plain_arms(comparison: Comparison) -> dict[str, Any]:
    """The same for a program to read."""
    records = comparison.records
    found: dict[str, Any] = {}
    for arm in _in_order(records):
        at = records.last(arm)
        metrics = {}
        for name in (name for columns in COLUMNS for name in columns):
            value = None if at is None else comparison.figure(arm, at, name)
            metrics[name] = None if value is None else dataclasses.asdict(value)
        found[arm] = {
            "family": records.family(arm),
            "seeds": records.seeds([arm]),
            "labels": records.labels(arm),
            "update": None if at is None else at[0],
            "metrics": metrics,
        }
    return found


def seconds(records: Records) -> list[str]:
    """Mean duration of each stage of a job."""
    found: dict[str, list[float]] = {}
    for some in records.by_arm.values():
        for record in some.values():
            for stage, value in record.seconds.items():
                found.setdefault(stage, []).append(value)
    rows = [[stage, f"{sum(v) / len(v):.0f}", str(len(v))] for stage, v in sorted(found.items())]
    return table(("stage of a job", "seconds (mean)", "jobs"), rows)


def settings(values: Mapping[str, Any]) -> list[str]:
    """A row a setting; those of a section by `section.name`."""
    return table(("setting", "value"), [[name, value] for name, value in _flat(values)])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            found.append((f"`{prefix}{name}`", ", ".join(map(str, value))))
        else:
            found.append((f"`{prefix}{name}`", str(value)))
    return found
