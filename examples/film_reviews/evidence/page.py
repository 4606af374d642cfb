"""docs/evidence.md: the answer, the pictures, the claims, the arms, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from examples.film_reviews.evidence.claims import HELD, NOT_ASKED, REFUTED, Judged, Verdict
from examples.film_reviews.evidence.compare import Comparison, Difference, Interval
from examples.film_reviews.evidence.protocol import Protocol
from examples.film_reviews.evidence.records import BASE, Records

COLUMNS = (
    ("reward", "reward ↑"),
    ("kl", "KL, nats"),
    ("semantic_diversity", "semantic diversity ↑"),
    ("distinct_2", "distinct-2 ↑"),
    ("self_bleu", "self-BLEU ↓"),
    ("vendi", "Vendi ↑"),
    ("coverage", "modes kept ↑"),
    ("valid", "valid ↑"),
    ("perplexity", "perplexity"),
    ("length_words", "words"),
)
"""Metrics of the table of arms."""
ALT = {
    "evidence": "Semantic diversity beside reward for every beta of DPO and kappa of GDPO",
    "evidence_coverage": "Share of the reference's most probable sentences that is kept, beside "
    "reward",
    "evidence_arms": "Semantic diversity beside reward for the other arms",
    "evidence_frontier": "Reward beside divergence from the reference",
    "evidence_labels": "Reward after training beside the number of labels asked for",
}


def markdown(
    records: Records,
    protocol: Protocol,
    judged: Judged,
    *,
    pictures: Sequence[str],
    settings: Mapping[str, Any],
    notes: Sequence[str],
    stamp: str,
    profile: str,
) -> str:
    """The page.

    Args:
        records: all of them.
        protocol: what was asked.
        judged: what came of it.
        pictures: names of those in images/.
        settings: that all arms shared.
        notes: of the machine, and what was left out.
        stamp: when the protocol was committed.
        profile: of the settings.
    """
    days = sorted({r.day for some in records.by_arm.values() for r in some.values()})
    pages = list(pictures)
    first = pages.pop(0) if pages else None
    parts = [
        "# Evidence: which objective?",
        "",
        *_introduction(records, settings, profile),
        "",
        "## The short answer",
        "",
        *_answer(judged),
        "",
        *([_picture(first), ""] if first else []),
        "## The positive control",
        "",
        *_control(judged, protocol),
        "",
        "## What held and what did not",
        "",
        "Outcomes follow from intervals alone, by the protocol in "
        "`examples/film_reviews/evidence/protocol.yaml` "
        f"({stamp}; runs of {_days(days)}). *Held*: the interval of the difference lies above 0. "
        "*Refuted*: it lies below the smallest difference that would matter, so none of that size "
        "can be hidden. *Undecided*: neither; more seeds would be needed.",
        "",
        *_claims(judged),
        "",
        *_not_asked(judged),
        *[line for name in pages for line in (_picture(name), "")],
        "## Every arm after its last update",
        "",
        *_arms(records, protocol),
        "",
        *_excluded(judged),
        "## How it was made",
        "",
        *_made(records, settings, notes, profile),
        "",
        "## What this cannot tell",
        "",
        *_limits(profile),
        "",
    ]
    return "\n".join(parts)


def _introduction(records: Records, settings: Mapping[str, Any], profile: str) -> list[str]:
    jobs = sum(len(some) for some in records.by_arm.values())
    model = "SmolLM2-135M-Instruct" if settings["writer"] is None else "a small writer of its own"
    return [
        f"`make experiment` trains {model} on preference pairs sampled from that same model, with "
        "every objective, measures each run along its way, and compares where the reward is the "
        f"same. This page is written from {jobs} runs ({len(records.by_arm)} arms"
        f"{', profile ' + profile if profile != 'cpu' else ''}); no sentence of an outcome was "
        "written by hand.",
    ]


def _days(days: Sequence[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


# --- the answer -----------------------------------------------------------------------------------

_SENTENCES = {
    "gdpo-semantic": (
        "**Diversity at the same reward**: GDPO (`tb`) kept more semantic diversity than DPO",
        "**Diversity at the same reward**: GDPO (`tb`) did not keep more semantic diversity than "
        "DPO; choose between them by other things",
        "**Diversity at the same reward**: whether GDPO (`tb`) keeps more semantic diversity than "
        "DPO was not decided",
    ),
    "gdpo-coverage": (
        "**What the reference found probable**: GDPO (`tb`) forgot less of it than DPO",
        "**What the reference found probable**: GDPO (`tb`) did not forget less of it than DPO",
        "**What the reference found probable**: whether GDPO (`tb`) forgets less of it was not "
        "decided",
    ),
    "gdpo-kl": (
        "**Reward for divergence**: GDPO (`tb`) got more than DPO",
        "**Reward for divergence**: GDPO (`tb`) got no more than DPO",
        "**Reward for divergence**: whether GDPO (`tb`) gets more than DPO was not decided",
    ),
    "odpo-log": (
        "**Graded preferences**: ODPO's log offset got more reward for its divergence than DPO",
        "**Graded preferences**: ODPO's log offset got no more reward for its divergence than DPO",
        "**Graded preferences**: whether ODPO's log offset gets more reward for its divergence was "
        "not decided",
    ),
    "adpo-g0.3": (
        "**Few labels**: asking where the model is unsure beat asking at random",
        "**Few labels**: asking where the model is unsure did not beat asking at random",
        "**Few labels**: whether asking where the model is unsure beats asking at random was not "
        "decided",
    ),
    "adpo-all": (
        "**All labels or some**: ADPO lost no reward that matters against DPO on all labels",
        "**All labels or some**: ADPO lost reward that matters against DPO on all labels",
        "**All labels or some**: whether ADPO loses reward against DPO on all labels was not "
        "decided",
    ),
}
"""Claim -> what to say when it is held, refuted, undecided."""


def _answer(judged: Judged) -> list[str]:
    lines = []
    for verdict in judged.verdicts:
        known = _SENTENCES.get(verdict.claim.id)
        if known is None or not verdict.differences:
            continue
        place = {HELD: 0, REFUTED: 1}.get(verdict.outcome, 2)
        lines.append(f"- {known[place]} ({_values(verdict)}).")
    if not lines:
        return ["None of the main questions could be asked of these runs."]
    return lines


def _values(verdict: Verdict) -> str:
    return "; ".join(_difference(d) for d in verdict.differences)


def _difference(difference: Difference) -> str:
    return f"{difference.value.text()} {difference.where}"


def _control(judged: Judged, protocol: Protocol) -> list[str]:
    wanted, control = protocol.control, judged.control
    if not control.differences:
        return [f"Not run: {control.why}. No comparison of diversity is claimed."]
    lines = [
        f"Nothing can be won back that was not lost. So training has to cost `{wanted.arm}` at "
        f"least {wanted.fall:g} of one of these against the untouched model, with an interval "
        "below 0:",
        "",
    ]
    names = {"semantic_diversity": "semantic diversity", "distinct_2": "distinct-2"}
    lines += [
        f"- {names.get(name, name)}: {difference.value.text()} ({len(difference.seeds)} seeds)"
        for name, difference in control.differences.items()
    ]
    verdict = (
        "It did: **passed**."
        if control.passed
        else "It did not: **failed**, so nothing is claimed of diversity."
    )
    return [*lines, "", verdict]


# --- tables ---------------------------------------------------------------------------------------


def _claims(judged: Judged) -> list[str]:
    lines = ["| claim | outcome | difference [95 %] | seeds |", "|---|---|---|---|"]
    for verdict in judged.verdicts:
        if verdict.outcome == NOT_ASKED:
            continue
        seeds = len(verdict.differences[0].seeds)
        note = f"<br>{verdict.why}" if verdict.why else ""
        values = "<br>".join(_difference(d) for d in verdict.differences)
        mark = " (main)" if verdict.claim.main else ""
        lines.append(
            f"| {verdict.claim.text}{mark} | **{verdict.outcome}**{note} | {values} | {seeds} |"
        )
    return lines


def _not_asked(judged: Judged) -> list[str]:
    left = [v for v in judged.verdicts if v.outcome == NOT_ASKED]
    if not left:
        return []
    return [
        "Not asked:",
        "",
        *[f"- {verdict.claim.text}: {verdict.why}" for verdict in left],
        "",
    ]


def _arms(records: Records, protocol: Protocol) -> list[str]:
    comparison = Comparison(records, min(500, protocol.resamples), frozenset())
    heads = " | ".join(title for _, title in COLUMNS)
    lines = [f"| arm | seeds | labels | {heads} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for arm, some in records.by_arm.items():
        last = records.last(arm)
        cells = [_cell(comparison.figure(arm, last, name)) for name, _ in COLUMNS]
        labels = sum(r.labels for r in some.values()) / len(some)
        asked = "" if arm == BASE else f"{labels:,.0f}"
        lines.append(f"| `{arm}` | {len(some)} | {asked} | {' | '.join(cells)} |")
    return lines


def _cell(value: Interval | None) -> str:
    if value is None:
        return "–"
    digits = 1 if abs(value.mean) >= 100 else 2 if abs(value.mean) >= 10 else 3
    return f"{value.mean:.{digits}f} ±{(value.high - value.low) / 2:.{digits}f}"


def _excluded(judged: Judged) -> list[str]:
    if not judged.excluded:
        return []
    return [
        "Points that took no part in comparisons, since noise has the most diversity of all:",
        "",
        *[f"- {line}" for line in judged.excluded],
        "",
    ]


def _picture(name: str) -> str:
    return f"![{ALT[name]}](images/{name}.png)"


# --- how ------------------------------------------------------------------------------------------


def _made(
    records: Records, settings: Mapping[str, Any], notes: Sequence[str], profile: str
) -> list[str]:
    s = settings
    seconds: dict[str, list[float]] = {}
    for some in records.by_arm.values():
        for record in some.values():
            for stage, value in record.seconds.items():
                seconds.setdefault(stage, []).append(value)
    times = ", ".join(f"{stage} {sum(v) / len(v):.0f} s" for stage, v in sorted(seconds.items()))
    make = "make experiment" + ("" if profile == "cpu" else f" PROFILE={profile}")
    return [
        "```",
        f"{make}                       # goes on where it was stopped",
        "python -m examples.film_reviews.evidence --plan",
        "python -m examples.film_reviews.evidence --page-only   # this page, from the records",
        "```",
        "",
        f"- **Prompts**: the first {s['prompt_words']} words of snippets; {s['prompts']} held-out "
        f"ones to measure with, {s['responses']} responses to each, at most {s['max_tokens']} "
        "tokens, from the plain softmax.",
        f"- **Pairs**: {s['pairs']:,} a seed, both responses sampled from the untouched model; the "
        "reward is VADER's sentiment of the whole sentence, the label is drawn by Bradley-Terry "
        f"at temperature {s['label_temperature']:g}; pairs without a difference are left out.",
        f"- **Training**: `nemo-gdpo train`, {s['updates']} updates of {s['batch']} pairs, "
        f"learning rate {s['learning_rate']:g} after {s['warmup']} updates of warm-up, the same "
        f"for every arm; measured after {', '.join(map(str, s['saves']))}.",
        f"- **Modes**: the {s['modes']} most probable complete responses to each prompt that a "
        "beam search of the untouched model finds. One is kept when it has at least a tenth of its "
        "probability.",
        "- **Perplexity** is that of another model, trained apart on the same kind of text: "
        "coherence beside diversity.",
        "- **Intervals**: percentile bootstrap over seeds and prompts, both sides drawn together.",
        f"- **Time of a job** (mean): {times}.",
        *[f"- {note}" for note in notes],
        "",
        "`benchmarks/evidence/records` has every value of every prompt, and "
        "`benchmarks/evidence/results.json` every outcome.",
    ]


def _limits(profile: str) -> list[str]:
    lines = [
        "- One task, one reward that a word list computes, sentences of two dozen words. An "
        "objective may behave otherwise where responses are long and the reward is a person's.",
        "- Hyper-parameters were swept in beta and kappa alone; every arm has the learning rate "
        "that DPO's pilot had.",
        "- Toxicity: not measured. No classifier can be had without a network; "
        "`evaluation.safety.toxicity` takes one where there is.",
        "- The end-token column on and off: with `tb` there is no difference at temperature 1, and "
        "`db` and `subtb` cannot do without it. What it adds is the row `subtb` against `tb`.",
    ]
    if profile == "cpu":
        lines.append(
            "- A model of five million parameters. `make experiment PROFILE=gpu` does the same "
            "with SmolLM2-135M, longer, on one GPU (written; not yet run)."
        )
    return lines
