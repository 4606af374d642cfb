"""Writes docs/evidence.md, its pictures and benchmarks/evidence/results.json from the records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.film_reviews.evidence import tables
from examples.film_reviews.evidence.answer import control_lines, defaults_lines, short_answer
from examples.film_reviews.evidence.arms import NO_ARMS
from examples.film_reviews.evidence.claims import Judged, judge
from examples.film_reviews.evidence.curves import Comparison
from examples.film_reviews.evidence.plots import PLOTS, ablation_plot, along_runs, labels_plot
from examples.film_reviews.evidence.protocol import Protocol
from examples.film_reviews.evidence.records import Records
from examples.film_reviews.pairs import write_atomically

RESAMPLES = 500
"""Of figures that decide nothing: the pictures' bars and the tables of arms."""
ALTS = {
    **{plot.name: plot.alt for plot in PLOTS},
    "evidence_labels": "Reward after training beside the number of labels asked for",
    "evidence_ablations": "Differences that each part of GDPO makes, with their intervals",
}


def write_page(
    records: Records,
    protocol: Protocol,
    *,
    docs_dir: Path,
    results_dir: Path,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    protocol_stamp: str,
) -> Path:
    """Write everything; the same input gives the same bytes.

    Args:
        records: all of them; arms and seeds may be missing.
        protocol: what is asked.
        docs_dir: gets `evidence.md` and `images/evidence*.png`.
        results_dir: gets `results.json`.
        notes: of the machine, and what was left out.
        settings: that all arms share.
        protocol_stamp: when the protocol was committed, in words.

    Returns:
        The page's path.

    Raises:
        UserError: a file cannot be written.
    """
    judged = judge(records, protocol)
    comparison = Comparison(records, min(RESAMPLES, protocol.resamples), judged.excluded)
    pictures = _pictures(comparison, judged, docs_dir / "images")
    stamp = f"{protocol_stamp}; SHA-256 `{protocol.sha256[:16]}`"
    text = markdown(
        comparison, protocol, judged, pictures, notes=notes, settings=settings, stamp=stamp
    )
    page = docs_dir / "evidence.md"
    docs_dir.mkdir(parents=True, exist_ok=True)
    results_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text)
    plain = {"schema": 1, "protocol": protocol.sha256, "stamp": protocol_stamp}
    everything = {**plain, "settings": dict(settings), "notes": list(notes)} | _plain(judged)
    everything["arms"] = tables.plain_arms(comparison)
    result = json.dumps(_rounded(everything), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomically(results_dir / "results.json", result + "\n")
    return page


def _pictures(comparison: Comparison, judged: Judged, directory: Path) -> list[str]:
    """Names of those that there is something to draw for; older ones of the others go."""
    drawn = {plot.name: along_runs(comparison, plot, directory) for plot in PLOTS}
    drawn["evidence_labels"] = labels_plot(comparison, directory / "evidence_labels.png")
    ablations = [verdict for verdict in judged.verdicts if verdict.claim.group == "ablation"]
    drawn["evidence_ablations"] = ablation_plot(ablations, directory / "evidence_ablations.png")
    for name, is_drawn in drawn.items():
        if not is_drawn:
            (directory / f"{name}.png").unlink(missing_ok=True)
    return [name for name, is_drawn in drawn.items() if is_drawn]


def markdown(
    comparison: Comparison,
    protocol: Protocol,
    judged: Judged,
    pictures: Sequence[str],
    *,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    stamp: str,
) -> str:
    """The page; arguments as of `write_page`."""
    records = comparison.records
    first = [name for name in pictures if name == "evidence"]
    parts = [
        "# Evidence: which objective to choose",
        "",
        *_introduction(records),
        "",
        "## The short answer",
        "",
        *short_answer(records, judged),
        "",
        *_picture(first),
        "## The positive control",
        "",
        *control_lines(judged.control, protocol),
        "",
        "## What held and what did not",
        "",
        *_rule(protocol, stamp),
        "",
        *tables.claims(judged),
        *_picture([name for name in pictures if name not in first]),
        "## Every arm after its last update",
        "",
        *tables.arms(comparison),
        "",
        "## What it means for the defaults",
        "",
        *defaults_lines(judged),
        "",
        "## What was left out",
        "",
        *_left_out(records, judged),
        "",
        "## How it was made",
        "",
        *_made(records, notes, settings, protocol),
        "",
    ]
    return "\n".join(parts)


def _introduction(records: Records) -> list[str]:
    runs = _count(sum(len(some) for some in records.by_arm.values()), "run")
    arms = _count(len(records.by_arm), "arm")
    return [
        "`make experiment` trains one model on preference pairs sampled from that same model, once "
        "with every objective, and measures each run along its way. Two runs are then compared "
        "where their reward is the same: an objective that learns less keeps more diversity, and "
        "that is no merit. [Objectives](objectives.md) says what each one is.",
        "",
        f"This page is computed from {runs} of {arms}, over "
        f"{_count(len(records.prompts), 'prompt')}. No outcome on it was written by hand.",
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rule(protocol: Protocol, stamp: str) -> list[str]:
    claims = len(protocol.claims)
    return [
        "The claims, the margins and what is excluded stand in "
        "`examples/film_reviews/evidence/protocol.yaml`, committed before the runs "
        f"({stamp}). **Held**: the 95 % interval of the difference, first side minus second, lies "
        "above 0. **Refuted**: it lies below the margin, so that no difference that would matter "
        "can be hidden. **Undecided**: neither. **Mixed**: the levels do not agree; each says its "
        "own. Where losing a little is allowed, both bounds are minus the margin.",
        "",
        f"Of {claims} claims a few come out wrong by chance at 95 %. Take the main ones, in bold, "
        "as answers, and the others as hints. With few seeds a bootstrap over seeds is known to "
        "give intervals that are a little too narrow.",
    ]


def _picture(names: Sequence[str]) -> list[str]:
    return [line for name in names for line in (f"![{ALTS[name]}](images/{name}.png)", "")]


def _left_out(records: Records, judged: Judged) -> list[str]:
    asked = [name for v in judged.verdicts for name in (v.claim.first, v.claim.second)]
    absent = [
        f"`{name}`" for name in dict.fromkeys(asked) if not (records.has(name) or name in NO_ARMS)
    ]
    lines = [f"- Asked for by the protocol and not run: {', '.join(absent)}."] if absent else []
    lines += [f"- `{name}` has no arm: {why}." for name, why in NO_ARMS.items() if name in asked]
    lines += [
        f"- Takes no part in comparisons, since noise has the most diversity of all: `{arm}` at "
        f"update {at[0]}, temperature {at[1]:g} ({why})."
        for (arm, at), why in judged.excluded.items()
    ]
    return [
        *lines,
        "- Toxicity: not measured. No classifier can be had without a network. Coherence is judged "
        "by an independent model's perplexity alone.",
        "- Long responses, a reward from people or a learned model, and other learning rates for "
        "each objective: not measured.",
    ]


def _made(
    records: Records, notes: Sequence[str], settings: Mapping[str, Any], protocol: Protocol
) -> list[str]:
    days = sorted({r.day for some in records.by_arm.values() for r in some.values()})
    ran = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [
        "```",
        "make experiment              # all of it; goes on where it was stopped",
        "make experiment QUICK=1      # try the program, in minutes",
        "make experiment PROFILE=gpu  # SmolLM2-135M on one GPU",
        "```",
        "",
        f"- The runs are of {ran}.",
        f"- Seeds: {protocol.power}",
        f"- Intervals: percentile bootstrap, {protocol.resamples:,} draws of seeds and prompts "
        "with replacement, the same for both sides.",
        f"- Equal reward: the level lies at {_shares(protocol)} of the gain that both sides reach; "
        "in every draw it is counted from that draw's untouched model, where a run's curve begins, "
        "and the first crossing counts. A family "
        "stands for the mean of its arms that reach the level.",
        *[f"- {note}" for note in notes],
        "- A GPU would add a model that people use (`PROFILE=gpu`), longer training and more "
        "prompts. It would not add another reward or another task.",
        "",
        *tables.seconds(records),
        "",
        *tables.settings(settings),
        "",
        "Every value of every prompt is in the records, every outcome in `results.json` beside "
        "them; those that docs/evidence.md stands on are in `benchmarks/evidence`.",
    ]


def _shares(protocol: Protocol) -> str:
    return " and ".join(f"{share:.0%}" for share in protocol.shares)


def _plain(judged: Judged) -> dict[str, Any]:
    control = judged.control
    return {
        "positive_control": {
            "passed": control.passed,
            "why": control.why,
            "seeds": list(control.seeds),
            "falls": {name: dataclasses.asdict(level) for name, level in control.falls.items()},
        },
        "claims": [
            {
                "id": verdict.claim.id,
                "claim": verdict.claim.text,
                "outcome": verdict.outcome,
                "seeds": list(verdict.seeds),
                "levels": [dataclasses.asdict(level) for level in verdict.levels],
                "notes": list(verdict.notes),
            }
            for verdict in judged.verdicts
        ],
        "excluded": [
            {"arm": arm, "update": at[0], "temperature": at[1], "why": why}
            for (arm, at), why in judged.excluded.items()
        ],
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, 5) if isinstance(value, float) else value
