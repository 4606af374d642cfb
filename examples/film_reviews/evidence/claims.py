"""What became of each claim, from intervals alone.

    held        the interval of the difference lies above 0
    refuted     it lies below the smallest difference that would matter, so that none can be hidden
    undecided   neither

Where a claim is asked at several levels, it is held or refuted when it is at all of them. "No
worse" is held when the interval lies above minus that difference, and refuted below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examples.film_reviews.evidence.compare import Comparison, Difference
from examples.film_reviews.evidence.protocol import Claim, Protocol
from examples.film_reviews.evidence.records import BASE, Records

HELD, REFUTED, UNDECIDED = "held", "refuted", "undecided"
NOT_ASKED = "not asked"
NOT_CLAIMED = "not claimed"


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it."""

    claim: Claim
    outcome: str
    differences: tuple[Difference, ...] = ()
    why: str = ""
    """Why it was not asked or is not claimed, or what to know beside it."""


@dataclass(frozen=True)
class ControlOutcome:
    """Whether training costs DPO its diversity."""

    passed: bool
    differences: dict[str, Difference]
    """Metric -> DPO minus untouched."""
    why: str = ""


@dataclass(frozen=True)
class Judged:
    """Everything that was asked."""

    control: ControlOutcome
    verdicts: tuple[Verdict, ...]
    excluded: tuple[str, ...]
    """Points that took no part, in words."""

    def outcome(self, name: str) -> str:
        """Of the claim with this id."""
        (found,) = (verdict for verdict in self.verdicts if verdict.claim.id == name)
        return found.outcome


def judge(records: Records, protocol: Protocol) -> Judged:
    """Answer every claim of the protocol."""
    excluded = excluded_points(records, protocol)
    comparison = Comparison(records, protocol.resamples, frozenset(excluded))
    control = _control(comparison, protocol)
    return Judged(
        control,
        tuple(_verdict(comparison, protocol, control, claim) for claim in protocol.claims),
        tuple(
            f"{arm} at update {update}, temperature {temperature:g}: {why}"
            for (arm, update, temperature), why in excluded.items()
        ),
    )


def excluded_points(records: Records, protocol: Protocol) -> dict[tuple[str, int, float], str]:
    """(arm, update, temperature) -> why it takes no part."""
    comparison = Comparison(records, 1, frozenset())
    usual = comparison.figure(BASE, (0, 1.0), "perplexity")
    limits = protocol.exclusions
    found: dict[tuple[str, int, float], str] = {}
    for arm, some in records.by_arm.items():
        for point in next(iter(some.values())).points:
            valid = comparison.figure(arm, point, "valid")
            perplexity = comparison.figure(arm, point, "perplexity")
            if valid is not None and valid.mean < limits.valid:
                found[(arm, *point)] = f"{valid.mean:.0%} of the responses are valid"
            elif usual and perplexity and perplexity.mean > limits.perplexity * usual.mean:
                times = perplexity.mean / usual.mean
                found[(arm, *point)] = f"perplexity {times:.1f} times the untouched model's"
    return found


def _control(comparison: Comparison, protocol: Protocol) -> ControlOutcome:
    wanted = protocol.control
    found: dict[str, Difference] = {}
    for metric in wanted.metrics:
        difference = comparison.at_last(wanted.arm, BASE, metric)
        if isinstance(difference, str):
            return ControlOutcome(False, {}, difference)
        found[metric] = difference
    fell = [d.value for d in found.values() if d.value.mean <= -wanted.fall and d.value.high < 0]
    return ControlOutcome(bool(fell), found)


def _verdict(
    comparison: Comparison, protocol: Protocol, control: ControlOutcome, claim: Claim
) -> Verdict:
    found = _differences(comparison, protocol, claim)
    if isinstance(found, str):
        return Verdict(claim, NOT_ASKED, why=found)
    outcome = _outcome(claim, found)
    if claim.needs_control and not control.passed:
        why = "the positive control failed: training did not cost DPO its diversity"
        return Verdict(claim, NOT_CLAIMED, tuple(found), why)
    seeds = len(found[0].seeds)
    few = claim.main and seeds < protocol.least_seeds
    return Verdict(claim, outcome, tuple(found), f"{seeds} seeds only" if few else "")


def _differences(
    comparison: Comparison, protocol: Protocol, claim: Claim
) -> list[Difference] | str:
    if claim.kind in ("last", "no_worse"):
        difference = comparison.at_last(claim.first, claim.second, claim.y)
        return difference if isinstance(difference, str) else [difference]
    return comparison.matched(
        claim.first,
        claim.second,
        x=claim.x,
        y=claim.y,
        shares=protocol.shares,
        least_gain=protocol.least_gain[claim.x],
        second_sweep=claim.kind == "scaled",
    )


def _outcome(claim: Claim, found: Sequence[Difference]) -> str:
    floor = -claim.margin if claim.kind == "no_worse" else 0.0
    ceiling = -claim.margin if claim.kind == "no_worse" else claim.margin
    if all(d.value.low > floor for d in found):
        return HELD
    if all(d.value.high < ceiling for d in found):
        return REFUTED
    return UNDECIDED
