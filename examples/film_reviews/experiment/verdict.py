"""What held and what did not, computed from differences between arms.

Two arms are compared prompt by prompt and seed by seed (the seeds that both have): both are drawn
anew together, so that what makes a prompt easy cancels. An outcome follows from intervals alone:

    held            the interval of the difference lies beyond 0 on the claimed side
    the opposite    it lies beyond 0 on the other side
    not decided     it holds 0

A sampling setting at which one of the arms looks degenerate (noise at a high temperature, say)
takes no part, as on the page's frontiers: its diversity is not to be taken at face value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from examples.film_reviews.experiment.arms import ADPO_ARM, BASE, DPO_ARM, RANDOM_ARM, RELEASED_ARM
from examples.film_reviews.experiment.pooling import (
    Values,
    draws,
    interval_of,
    refuse_other_prompts,
    resampled_means,
    table_SP,
)
from nemo_gdpo.evaluation.results import Interval, Point, Results, Sampling

MARGIN = 0.05
"""Margin of sentiment, from -1 to 1: losing less than this counts as a comparable reward."""
DEGENERATE = "could not be asked: the arm looks degenerate"
OUTSIDE = 0.2
"""Share of draws in which a curve may fail to reach the other arm's reward."""

Found = Mapping[str, Mapping[int, Results]]


@dataclass(frozen=True)
class Difference:
    """First arm minus second, in one metric at one sampling setting."""

    first: str
    second: str
    metric: str
    sampling: str
    value: Interval
    seeds: int

    def sign(self) -> int:
        """1 or -1 when the interval lies beyond 0, else 0."""
        return int(self.value.low > 0) - int(self.value.high < 0)

    def text(self) -> str:
        """`+0.031 [0.010, 0.052]`."""
        return f"{self.value.mean:+.3f} [{self.value.low:+.3f}, {self.value.high:+.3f}]"


@dataclass(frozen=True)
class Verdict:
    """One claim and what became of it."""

    claim: str
    outcome: str
    """held, the opposite, not decided, or why it could not be asked."""
    evidence: tuple[str, ...]
    differences: tuple[Difference, ...] = field(default=())


class Comparison:
    """Arms side by side."""

    def __init__(self, found: Found, resamples: int) -> None:
        refuse_other_prompts(found)
        self.found = found
        self.resamples = resamples
        first = next(iter(next(iter(found.values())).values()))
        headline = first.headline
        self.diversity = headline.diversity
        self.quality = headline.quality or ""
        self.divergence = headline.divergence
        self.prompts = len(first.runs[0].prompt_ids)
        self.samplings = [point.sampling for point in first.runs[0].points]

    def has(self, *arms: str) -> bool:
        """Whether all were run, with a seed in common."""
        return all(arm in self.found for arm in arms) and bool(self.seeds(*arms))

    def seeds(self, *arms: str) -> list[int]:
        """That all of them have."""
        common = set.intersection(*(set(self.found[arm]) for arm in arms))
        return sorted(common)

    def points(self, arm: str, sampling: Sampling, seeds: Sequence[int]) -> list[Point]:
        """Values of each seed."""
        return [
            next(p for p in self.found[arm][seed].runs[0].points if p.sampling == sampling)
            for seed in seeds
        ]

    def flags(self, arm: str, sampling: Sampling) -> set[str]:
        """Names of what looks degenerate there, in any of the arm's seeds."""
        points = self.points(arm, sampling, sorted(self.found[arm]))
        return {flag.name for point in points for flag in point.flags}

    def sound(self, *arms: str) -> list[Sampling]:
        """The sampling settings at which none of the arms looks degenerate."""
        return [s for s in self.samplings if not any(self.flags(arm, s) for arm in arms)]

    def left_out(self, *arms: str) -> tuple[str, ...]:
        """A line for each of the other settings."""
        lines = []
        for sampling in self.samplings:
            why = {arm: self.flags(arm, sampling) for arm in arms}
            named = [f"{arm} ({', '.join(sorted(names))})" for arm, names in why.items() if names]
            if named:
                lines.append(f"at {sampling.label()}: not counted, degenerate: {', '.join(named)}")
        return tuple(lines)

    def difference(
        self, first: str, second: str, metric: str, sampling: Sampling
    ) -> Difference | None:
        """Paired, or None where a value is missing on either side for every prompt."""
        seeds = self.seeds(first, second)
        tables = [
            table_SP(self.points(arm, sampling, seeds), metric, self.prompts)
            for arm in (first, second)
        ]
        change_SP: Values = tables[0] - tables[1]
        known = np.isfinite(change_SP)
        if not known.any():
            return None
        means = resampled_means(change_SP, draws(len(seeds), self.prompts, self.resamples, seed=2))
        value = interval_of(means, float(change_SP[known].mean()), int(known.any(axis=0).sum()))
        return Difference(first, second, metric, sampling.label(), value, len(seeds))

    def at_same_reward(self, first: str, second: str, sampling: Sampling) -> Difference | None:
        """Diversity of `first` minus that of `second` where its sweep has the same reward.

        The second arm's diversity is interpolated between the sampling settings on either side of
        the first arm's reward, anew in every draw.

        Returns:
            None when the second arm's sweep, as far as it is sound, does not reach that reward, by
            its means or in more than a fifth of the draws.
        """
        seeds = self.seeds(first, second)
        drawn = draws(len(seeds), self.prompts, self.resamples, seed=3)
        here = self.points(first, sampling, seeds)
        curve = [self.points(second, other, seeds) for other in self.sound(second)]

        def both(points: list[Point]) -> tuple[Values, Values, float, float]:
            reward, diversity = (
                table_SP(points, metric, self.prompts) for metric in (self.quality, self.diversity)
            )
            return (
                resampled_means(reward, drawn),
                resampled_means(diversity, drawn),
                float(np.nanmean(reward)),
                float(np.nanmean(diversity)),
            )

        reward_R, diversity_R, reward, diversity = both(here)
        rows = [both(points) for points in curve]
        centre = interpolated(reward, [r[2] for r in rows], [r[3] for r in rows])
        if np.isnan(centre):
            return None
        change_R = np.array(
            [
                diversity_R[n]
                - interpolated(
                    reward_R[n],
                    [float(r[0][n]) for r in rows],
                    [float(r[1][n]) for r in rows],
                )
                for n in range(self.resamples)
            ]
        )
        if np.isnan(change_R).mean() > OUTSIDE:
            return None
        value = interval_of(change_R, diversity - centre, self.prompts)
        return Difference(first, second, self.diversity, sampling.label(), value, len(seeds))


def interpolated(at: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """y where the polyline through the points has x = `at`; nan outside; the best of several."""
    best = float("nan")
    for (x0, y0), (x1, y1) in zip(
        zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=False), strict=False
    ):
        low, high = min(x0, x1), max(x0, x1)
        if low <= at <= high:
            share = 0.0 if x1 == x0 else (at - x0) / (x1 - x0)
            y = y0 + share * (y1 - y0)
            best = y if np.isnan(best) else max(best, y)
    return best


def _outcome(signs: Sequence[int]) -> str:
    if not signs:
        return "could not be asked"
    if all(sign > 0 for sign in signs):
        return "held"
    if all(sign < 0 for sign in signs):
        return "the opposite"
    if all(sign == 0 for sign in signs):
        return "not decided"
    if any(sign > 0 for sign in signs) and any(sign < 0 for sign in signs):
        return "mixed"
    return "held in part" if any(sign > 0 for sign in signs) else "the opposite in part"


def verdicts(found: Found, resamples: int) -> list[Verdict]:
    """Every claim that the arms at hand can answer."""
    c = Comparison(found, resamples)
    if not c.quality:
        raise ValueError("these results have no reward to compare by")
    gdpo = [arm for arm in found if arm.startswith("gdpo-") and arm != RELEASED_ARM]
    trained = [arm for arm in found if arm not in (BASE, RELEASED_ARM)]
    made = [_learned(c, arm) for arm in trained if c.has(arm, BASE)]
    made += [_more_diverse(c, arm, DPO_ARM) for arm in gdpo if c.has(arm, DPO_ARM)]
    if c.has(RELEASED_ARM):
        made.append(_released(c))
    if c.has("odpo", DPO_ARM):
        made.append(_simple(c, "odpo", DPO_ARM, c.quality, "ODPO has a higher reward than DPO"))
        if c.divergence is not None:
            claim = "ODPO stays closer to the reference than DPO"
            made.append(_simple(c, "odpo", DPO_ARM, c.divergence, claim, wanted=-1))
    if c.has(ADPO_ARM, DPO_ARM):
        made.append(_no_worse(c, ADPO_ARM, DPO_ARM, _labels(c)))
    if c.has(ADPO_ARM, RANDOM_ARM):
        claim = "Asking where the model is unsure beats asking at random, with as many labels"
        made.append(_simple(c, ADPO_ARM, RANDOM_ARM, c.quality, claim))
    return made


def _at_one(c: Comparison) -> Sampling:
    """The untouched distribution, where the sweep has it."""
    return min(c.samplings, key=lambda s: abs(s.temperature - 1.0))


def _learned(c: Comparison, arm: str) -> Verdict:
    sampling = _at_one(c)
    found = c.difference(arm, BASE, c.quality, sampling)
    other = c.difference(arm, BASE, c.diversity, sampling)
    known = tuple(d for d in (found, other) if d is not None)
    evidence = tuple(
        f"{_words(d.metric)} {d.text()} against the untouched model at {d.sampling}" for d in known
    )
    claim = f"{arm}: training raised the reward"
    if names := c.flags(arm, sampling):
        evidence += (f"degenerate at {sampling.label()}: {', '.join(sorted(names))}",)
        return Verdict(claim, DEGENERATE, evidence + _seeds_note(known), known)
    return Verdict(
        claim, _outcome([found.sign()] if found else []), evidence + _seeds_note(known), known
    )


def _more_diverse(c: Comparison, arm: str, other: str) -> Verdict:
    """The paper's claim: more diversity at a comparable reward."""
    differences, evidence, signs = [], [], []
    sound = c.sound(arm, other)
    unsure = False
    for sampling in sound:
        matched = c.at_same_reward(arm, other, sampling)
        diversity = c.difference(arm, other, c.diversity, sampling)
        reward = c.difference(arm, other, c.quality, sampling)
        if diversity is None or reward is None:
            continue
        differences += [diversity, reward]
        line = f"at {sampling.label()}: diversity {diversity.text()}, reward {reward.text()}"
        if matched is not None:
            differences.append(matched)
            signs.append(matched.sign())
            line += f"; at the same reward diversity {matched.text()}"
        elif reward.value.low > -MARGIN:
            # No interpolation needed: no less rewarded, at one temperature.
            signs.append(diversity.sign())
            line += f"; the reward is at most {MARGIN} lower, so diversity is compared directly"
        elif reward.value.high > -MARGIN:
            unsure = True
            line += f"; whether the reward is at most {MARGIN} lower is not certain"
        else:
            line += "; less reward, which is not comparable"
        evidence.append(line)
    if not sound:
        outcome = DEGENERATE
    elif signs or unsure:
        outcome = _outcome(signs or [0])
    else:
        outcome = "could not be asked: no comparable reward"
    return Verdict(
        f"{arm} is more diverse than {other} at a comparable reward",
        outcome,
        (*evidence, *c.left_out(arm, other), *_seeds_note(differences)),
        tuple(differences),
    )


def _released(c: Comparison) -> Verdict:
    # What noise does to the untouched model as well is the temperature's fault.
    own = {s.label(): c.flags(RELEASED_ARM, s) - c.flags(BASE, s) for s in c.samplings}
    flags = [f"{label} ({', '.join(sorted(names))})" for label, names in own.items() if names]
    sampling = _at_one(c)
    known = tuple(
        d
        for metric in (c.quality, c.diversity)
        if c.has(RELEASED_ARM, BASE)
        and (d := c.difference(RELEASED_ARM, BASE, metric, sampling)) is not None
    )
    evidence = tuple(
        f"{_words(d.metric)} {d.text()} against the untouched model at {d.sampling}" for d in known
    )
    if flags:
        evidence += (f"degenerate, and the untouched model is not: {', '.join(flags)}",)
    lost = any(d.metric == c.diversity and d.sign() < 0 for d in known)
    outcome = "did not hold" if flags or lost else "held"
    return Verdict(
        f"{RELEASED_ARM}: the released defaults train a sound and diverse model",
        outcome,
        evidence + _seeds_note(known),
        known,
    )


def _simple(
    c: Comparison, first: str, second: str, metric: str, claim: str, *, wanted: int = 1
) -> Verdict:
    known, evidence = _differences(c, first, second, metric)
    return Verdict(
        claim, _outcome([wanted * d.sign() for d in known]), evidence + _seeds_note(known), known
    )


def _differences(
    c: Comparison, first: str, second: str, metric: str
) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
    """Differences at every setting at which both are sound, and a line for each setting."""
    known = tuple(
        d
        for s in c.sound(first, second)
        if (d := c.difference(first, second, metric, s)) is not None
    )
    lines = tuple(f"at {d.sampling}: {_words(metric)} {d.text()}" for d in known)
    return known, lines + c.left_out(first, second)


def _no_worse(c: Comparison, first: str, second: str, labels: str) -> Verdict:
    known, evidence = _differences(c, first, second, c.quality)
    held = [d.value.low > -MARGIN for d in known]
    lost = [d.value.high < 0 for d in known]
    if not known:
        outcome = "could not be asked"
    elif all(held):
        outcome = "held"
    elif any(lost):
        outcome = "the opposite"
    else:
        outcome = "not decided"
    return Verdict(
        f"{first} loses at most {MARGIN} of reward against {second}, with fewer labels",
        outcome,
        (*evidence, labels, *_seeds_note(known)),
        known,
    )


def _labels(c: Comparison) -> str:
    seeds = sorted(c.found[ADPO_ARM])
    parts = []
    for seed in seeds:
        facts = c.found[ADPO_ARM][seed].runs[0].facts
        parts.append(f"{facts.get('queries asked')} of {facts.get('pairs seen')} (seed {seed})")
    return f"labels asked for: {', '.join(parts)}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _seeds_note(known: Sequence[Difference]) -> tuple[str, ...]:
    seeds = {d.seeds for d in known}
    if seeds == {1}:
        return ("one training seed: the interval covers the choice of prompts only",)
    if seeds:
        return (f"{max(seeds)} training seeds, drawn anew with the prompts",)
    return ()
