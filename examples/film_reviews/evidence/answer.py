"""What the outcomes say to somebody who has to choose: every sentence follows from a verdict."""

from __future__ import annotations

from examples.film_reviews.evidence.claims import (
    CONTROL_FAILED,
    HELD,
    MIXED,
    NOT_RUN,
    UNASKED,
    Control,
    Judged,
    Verdict,
    outcome_at,
)
from examples.film_reviews.evidence.protocol import OUTCOMES, Protocol
from examples.film_reviews.evidence.records import Records, words


def differences(verdict: Verdict) -> str:
    """`at reward 0.210: +0.031 [+0.010, +0.052]; ...`, of the levels that could be asked.

    Where the levels do not agree, each says its outcome, also one that could not be asked.
    """
    said = []
    for level in verdict.levels:
        change = "" if level.difference is None else f": {level.difference.change()}"
        if verdict.outcome == MIXED:
            said.append(f"{level.where} {outcome_at(verdict.claim, level)}{change}")
        elif change:
            said.append(f"{level.where}{change}")
    return "; ".join(said)


def short_answer(records: Records, judged: Judged) -> list[str]:
    """The headline, then a line for each main claim, decided ones first."""
    main = [verdict for verdict in judged.verdicts if verdict.claim.main]
    asked = [verdict for verdict in main if verdict.outcome in (*OUTCOMES, MIXED)]
    order = (HELD, "refuted", MIXED, "undecided")
    lines = [
        f"- {_meaning(verdict)} ({differences(verdict)}; {_seeds(len(verdict.seeds))})"
        for verdict in sorted(asked, key=lambda v: order.index(v.outcome))
    ]
    lines += _unasked(main)
    return [_headline(records, asked), "", *lines]


def _headline(records: Records, asked: list[Verdict]) -> str:
    others = [v for v in asked if "dpo" not in (v.claim.first, _family(records, v.claim.first))]
    if not others:
        return "**These runs do not decide which objective to choose.** What they say:"
    if any(verdict.outcome == HELD for verdict in others):
        return "**It depends on what you need; these held:**"
    return (
        "**Start with DPO.** No other objective was shown to be better at what was asked of it. "
        "Not shown is not refuted; the lines say which it is:"
    )


def _family(records: Records, name: str) -> str:
    return records.family(name) if name in records.by_arm else name


def _meaning(verdict: Verdict) -> str:
    if verdict.outcome in OUTCOMES:
        text = verdict.claim.means[verdict.outcome]
    else:
        text = f"{verdict.claim.text}: the levels do not agree, so neither yes nor no."
    return f"**{verdict.outcome.capitalize()}**: {text}"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _unasked(main: list[Verdict]) -> list[str]:
    found = []
    for outcome, head in (
        (CONTROL_FAILED, "**Not claimed**, because the positive control failed"),
        (UNASKED, "**Could not be asked**"),
        (NOT_RUN, "**Not measured**, because an arm was not run"),
    ):
        texts = [_text(verdict) for verdict in main if verdict.outcome == outcome]
        if texts:
            found.append(f"- {head}: {'; '.join(texts)}.")
    return found


def _text(verdict: Verdict) -> str:
    """The claim; where a run spoke against asking it, with what it was."""
    why = f" ({'; '.join(verdict.notes)})" if verdict.outcome == UNASKED and verdict.notes else ""
    return f"{verdict.claim.text}{why}"


def control_lines(control: Control, protocol: Protocol) -> list[str]:
    """What was asked of the positive control and what came of it."""
    wanted = protocol.control
    names = " or ".join(words(name) for name in wanted.metrics)
    lines = [
        "Nothing can be won back that was not lost. So training has to cost "
        f"`{wanted.arm}` at least {wanted.fall:g} of {names} against the untouched model, after "
        "the last update and at temperature 1, with an interval that excludes 0. Unless it does, "
        "nothing is claimed of diversity.",
        "",
    ]
    for name, level in control.falls.items():
        value = level.difference
        said = f"not measured ({level.why})" if value is None else value.change()
        lines.append(f"- {words(name)}: {said}, {_seeds(len(control.seeds))}")
    if control.why:
        lines.append(f"- could not be evaluated: {control.why}")
    if len(control.seeds) == 1:
        lines.append("- one seed: the interval covers the choice of prompts only")
    passed = "**Passed.**" if control.passed else "**Failed**: nothing is claimed of diversity."
    return [*lines, "", passed]


def defaults_lines(judged: Judged) -> list[str]:
    """Whether `conf/objective/` and the defaults follow."""
    known = {verdict.claim.id: verdict for verdict in judged.verdicts}
    lines = []
    for name, better, key in (
        ("subtb-or-tb", "subtb", "`objective.balance` stays `tb`"),
        ("spl", "SPL", "the objective that the guide begins with stays DPO"),
    ):
        verdict = known.get(name)
        if verdict is None:
            continue
        if verdict.outcome == HELD:
            lines.append(f"- {better} did better in its claim: a reason to look at it again.")
        else:
            lines.append(f"- {better}: {verdict.outcome}, so {key}.")
    return [
        *lines,
        "- `conf/objective/` holds settings of papers by name (`gdpo_released`, `gflownet_subtb`). "
        "They reproduce; they do not recommend, and outcomes here do not change them.",
    ]
