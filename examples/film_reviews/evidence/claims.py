"""What became of the protocol's claims: outcomes follow from intervals alone.

held                 the interval lies above 0 (no_worse: above minus the margin)
refuted              it lies below the margin (no_worse: below minus the margin)
undecided            neither
mixed                the levels do not agree
could not be asked   a side does not reach the level, or was not measured
not run              an arm has no record, or no seed is common to all
not claimed          the positive control failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from examples.film_reviews.evidence.bootstrap import Interval
from examples.film_reviews.evidence.curves import Comparison, Excluded, Level, Side
from examples.film_reviews.evidence.protocol import Claim, Protocol
from examples.film_reviews.evidence.records import BASE, START, Records

HELD, REFUTED, UNDECIDED, MIXED = "held", "refuted", "undecided", "mixed"
UNASKED = "could not be asked"
NOT_RUN = "not run"
NOT_CLAIMED = "not claimed"
CONTROL_FAILED = f"{NOT_CLAIMED}: the positive control failed"


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it."""

    claim: Claim
    outcome: str
    levels: tuple[Level, ...] = ()
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    """Why it was not asked, or what to know beside it."""


@dataclass(frozen=True)
class Control:
    """Whether training costs DPO its diversity."""

    passed: bool
    falls: dict[str, Level] = field(default_factory=dict)
    """Metric -> trained minus untouched."""
    seeds: tuple[int, ...] = ()
    why: str = ""
    """Why it could not be evaluated."""


@dataclass(frozen=True)
class Judged:
    """Everything that was asked."""

    control: Control
    verdicts: tuple[Verdict, ...]
    excluded: Excluded

    def verdict(self, name: str) -> Verdict:
        """Of the claim with this id."""
        (found,) = (verdict for verdict in self.verdicts if verdict.claim.id == name)
        return found


def judge(records: Records, protocol: Protocol) -> Judged:
    """Answer every claim, the positive control first."""
    excluded = excluded_points(records, protocol)
    comparison = Comparison(records, protocol.resamples, excluded)
    control = positive_control(comparison, protocol)
    verdicts = tuple(_verdict(comparison, protocol, control, claim) for claim in protocol.claims)
    return Judged(control, verdicts, excluded)


def excluded_points(records: Records, protocol: Protocol) -> Excluded:
    """Points that are no text any more, by their means over all seeds."""
    comparison = Comparison(records, 0)
    usual = comparison.mean(BASE, START, "perplexity")
    limits = protocol.exclusions
    found: Excluded = {}
    for arm in records.by_arm:
        for at in records.points(arm):
            valid = comparison.mean(arm, at, "valid")
            perplexity = comparison.mean(arm, at, "perplexity")
            if valid is not None and valid < limits.valid:
                found[(arm, at)] = f"{valid:.0%} of the responses are valid"
            elif usual and perplexity and perplexity > limits.perplexity * usual:
                times = perplexity / usual
                found[(arm, at)] = f"perplexity {times:.1f} times the untouched model's"
    return found


def positive_control(comparison: Comparison, protocol: Protocol) -> Control:
    """Whether one of its metrics fell by enough, with an interval that excludes 0."""
    wanted = protocol.control
    if wanted.arm not in comparison.records.by_arm:
        return Control(False, why=f"{wanted.arm} was not run")
    seeds = comparison.records.seeds([BASE, wanted.arm])
    if not seeds:
        return Control(False, why=f"{BASE} and {wanted.arm} have no seed in common")
    falls = {name: comparison.last(wanted.arm, BASE, seeds, name) for name in wanted.metrics}
    known = [level.difference for level in falls.values() if level.difference is not None]
    why = "" if known else "; ".join(level.why for level in falls.values())
    passed = any(one.mean <= -wanted.fall and one.high < 0 for one in known)
    return Control(passed, falls, tuple(seeds), why)


def outcome_of(claim: Claim, value: Interval) -> str:
    """Of one interval."""
    worst_allowed = claim.kind == "no_worse"
    if value.low > (-claim.margin if worst_allowed else 0.0):
        return HELD
    if value.high < (-claim.margin if worst_allowed else claim.margin):
        return REFUTED
    return UNDECIDED


def outcome_at(claim: Claim, level: Level) -> str:
    """Of one level."""
    return UNASKED if level.difference is None else outcome_of(claim, level.difference)


def _verdict(comparison: Comparison, protocol: Protocol, control: Control, claim: Claim) -> Verdict:
    records = comparison.records
    missing = [name for name in (claim.first, claim.second) if not records.has(name)]
    if missing:
        return Verdict(claim, NOT_RUN, notes=(f"no record of {' and '.join(missing)}",))
    arms = _arms(records, claim)
    seeds = records.seeds(arms)
    if not seeds:
        return Verdict(claim, NOT_RUN, notes=("no seed that all of its arms have",))
    levels = _levels(comparison, protocol, claim, seeds)
    outcomes = {outcome_at(claim, level) for level in levels}
    outcome = outcomes.pop() if len(outcomes) == 1 else MIXED
    if claim.y in protocol.control.guards and not control.passed:
        outcome = CONTROL_FAILED
    notes = _notes(records, protocol, claim, levels, arms, seeds, outcome)
    return Verdict(claim, outcome, tuple(levels), tuple(seeds), tuple(notes))


def _arms(records: Records, claim: Claim) -> list[str]:
    """Whose seeds a claim needs: the untouched model's too, where curves begin at it."""
    start = [BASE] if claim.kind == "matched" else []
    found = [*start, *records.members(claim.first), *records.members(claim.second)]
    return list(dict.fromkeys(found))


def _levels(
    comparison: Comparison, protocol: Protocol, claim: Claim, seeds: Sequence[int]
) -> list[Level]:
    if claim.kind == "matched":
        return comparison.matched(
            Side(claim.first, claim.first_sweep),
            Side(claim.second, claim.second_sweep),
            seeds,
            x=claim.x,
            y=claim.y,
            shares=claim.shares or protocol.shares,
            least_gain=protocol.least_gain[claim.x],
        )
    return [comparison.last(claim.first, claim.second, seeds, claim.y)]


def _notes(
    records: Records,
    protocol: Protocol,
    claim: Claim,
    levels: Sequence[Level],
    arms: Sequence[str],
    seeds: Sequence[int],
    outcome: str,
) -> list[str]:
    found = [f"{level.where}: {level.why}" for level in levels if level.difference is None]
    known = [level.difference for level in levels if level.difference is not None]
    if outcome == HELD and claim.kind != "no_worse" and all(d.high < claim.margin for d in known):
        found.append(f"by less than the {claim.margin:g} that would matter")
    if outcome == REFUTED and claim.kind != "no_worse" and all(d.high < 0 for d in known):
        found.append("the opposite: the interval lies below 0")
    for level in levels:
        found += _members(records, claim, level)
        if level.lost:
            found.append(f"{level.where}: {level.lost:.0%} of the draws do not reach it")
    if claim.main and len(seeds) < protocol.least_seeds:
        found.append(f"{len(seeds)} of at least {protocol.least_seeds} seeds")
    if len(seeds) == 1:
        found.append("one seed: the interval covers the choice of prompts only")
    for arm, gap in records.missing_seeds(arms).items():
        found.append(f"{arm} lacks seed {', '.join(map(str, gap))}, left out of the comparison")
    return found


def _members(records: Records, claim: Claim, level: Level) -> list[str]:
    """How many arms of a family stand for it, where not all of them do."""
    found = []
    for name, taken in zip((claim.first, claim.second), level.members, strict=True):
        every = records.members(name)
        if level.difference is not None and len(taken) < len(every):
            found.append(f"{level.where}: {name} by {len(taken)} of its {len(every)} arms")
    return found
