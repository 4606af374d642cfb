"""Curves of arms, and the difference between two sides where they have the same reward.

A run's curve begins at the untouched model and goes through every update at which it was measured.
A sweep's goes over the temperatures of one model instead. What is asked of a curve is the value of
one metric where another (the reward, or the divergence) first has some level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.film_reviews.evidence.bootstrap import Draws, Interval, interval
from examples.film_reviews.evidence.records import BASE, START, At, Records, Values, words

LOST = 0.2
"""Share of draws in which a curve may fail to reach the level that is asked."""
Excluded = dict[tuple[str, At], str]
"""(Arm, point) that takes no part -> why."""


@dataclass(frozen=True)
class Curve:
    """Both axes in the order of the curve, [draws, points]; row 0 is the data themselves."""

    x_RU: Values
    y_RU: Values

    def at(self, level: float | Values) -> Values:
        """y where x first has this level, or each draw's own, [draws]; nan where it never has."""
        found = np.full(len(self.x_RU), np.nan)
        for n in reversed(range(self.x_RU.shape[1] - 1)):
            x0, x1 = self.x_RU[:, n], self.x_RU[:, n + 1]
            y0, y1 = self.y_RU[:, n], self.y_RU[:, n + 1]
            crosses = (np.minimum(x0, x1) <= level) & (level <= np.maximum(x0, x1))
            width = np.where(x1 == x0, 1.0, x1 - x0)
            share = np.where(x1 == x0, 0.0, (level - x0) / width)
            found = np.where(crosses, y0 + share * (y1 - y0), found)
        return found

    @property
    def reach(self) -> float:
        """The greatest x of the means; -inf when there is none."""
        known = self.x_RU[0][np.isfinite(self.x_RU[0])]
        return float(known.max()) if len(known) else float("-inf")


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    """Of an arm, or of a family, which stands for the mean of its arms."""
    sweep: bool = False
    """Over temperatures instead of along the run."""


@dataclass(frozen=True)
class Level:
    """What came of a comparison at one place."""

    where: str
    difference: Interval | None
    """First side minus second; None when it could not be asked."""
    why: str = ""
    """Why it could not."""
    members: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The arms of both sides that reach the place."""
    lost: float = 0.0
    """Share of draws that do not reach it, which are left out."""


class Comparison:
    """Arms side by side, on the seeds that all of them have."""

    def __init__(self, records: Records, resamples: int, excluded: Excluded | None = None) -> None:
        self.records = records
        self.resamples = resamples
        self.excluded = excluded or {}

    def draws(self, seeds: Sequence[int]) -> Draws:
        """The same for both sides of a comparison."""
        return Draws(len(seeds), len(self.records.prompts), self.resamples)

    def path(self, arm: str, seeds: Sequence[int], *, sweep: bool = False) -> list[tuple[str, At]]:
        """The points of a curve in its order, but for those that are excluded."""
        points = self.records.points(arm, seeds)
        if sweep:
            last = self.records.last(arm, seeds)
            points = [at for at in points if last is not None and at[0] == last[0]]
            # From the plain distribution on: cooler for the untouched model, hotter for another.
            side = [at for at in points if (at[1] <= 1.0 if arm == BASE else at[1] >= 1.0)]
            found = [(arm, at) for at in sorted(side, key=lambda at: abs(at[1] - 1.0))]
        else:
            own = [(arm, at) for at in points if at[1] == 1.0 and at != START]
            found = [(BASE, START), *own]
        return [one for one in found if one not in self.excluded]

    def curve(
        self, arm: str, seeds: Sequence[int], draws: Draws, x: str, y: str, *, sweep: bool = False
    ) -> Curve:
        """Of one arm, pooled over seeds and prompts in every draw; it may have no points."""
        path = self.path(arm, seeds, sweep=sweep)
        axes = [
            [draws.means(self.records.table(name, seeds, at, metric)) for name, at in path]
            or [np.full(self.resamples + 1, np.nan)]
            for metric in (x, y)
        ]
        x_RU, y_RU = (np.stack(axis, axis=1) for axis in axes)
        # A point without both figures is not on the curve; the line passes it by.
        kept = np.isfinite(x_RU[0]) & np.isfinite(y_RU[0])
        return Curve(x_RU[:, kept], y_RU[:, kept])

    def mean(self, arm: str, at: At, metric: str) -> float | None:
        """One metric of one arm at one point, over all its seeds; None where nobody measured it."""
        values = self.records.table(arm, self.records.seeds([arm]), at, metric)
        known = values[np.isfinite(values)]
        return float(known.mean()) if len(known) else None

    def figure(self, arm: str, at: At, metric: str) -> Interval | None:
        """The same with its interval."""
        seeds = self.records.seeds([arm])
        means = self.draws(seeds).means(self.records.table(arm, seeds, at, metric))
        return interval(means) if np.isfinite(means[0]) else None

    def matched(
        self,
        first: Side,
        second: Side,
        seeds: Sequence[int],
        *,
        x: str,
        y: str,
        shares: Sequence[float],
        least_gain: float,
    ) -> list[Level]:
        """y of the first side minus y of the second where both have the same x.

        Args:
            first, second: sides, whose arms were run.
            seeds: that all of them have.
            x, y: metrics.
            shares: where to ask: shares of the gain in x over the untouched model that both sides
                reach by their means (of a family: its furthest arm).
            least_gain: below it there is nothing to compare.
        """
        draws = self.draws(seeds)
        curves = [
            {
                arm: self.curve(arm, seeds, draws, x, y, sweep=side.sweep)
                for arm in self.records.members(side.name)
            }
            for side in (first, second)
        ]
        for side, found in zip((first, second), curves, strict=True):
            if all(curve.x_RU.shape[1] < 2 for curve in found.values()):
                over = "over temperatures" if side.sweep else "along its run"
                why = f"{words(x)} and {words(y)} of {side.name} were not measured {over}"
                return [Level("anywhere", None, why)]
        base_R = draws.means(self.records.table(BASE, seeds, START, x))
        gain = min(max(curve.reach for curve in side.values()) for side in curves) - base_R[0]
        if not gain >= least_gain:
            why = f"too little {words(x)} that both reach: {gain:+z.3f}"
            return [Level("anywhere", None, why)]
        # The gain is the same in all draws, counted from the untouched model in that draw: how much
        # reward the prompts of a draw give to anybody must not decide whether a run gets there.
        return [_at_level(curves, x, base_R + share * gain) for share in shares]

    def last(self, first: str, second: str, seeds: Sequence[int], metric: str) -> Level:
        """A metric after the last update, prompt by prompt and seed by seed."""
        where, tables = "after the last update", []
        for arm in (first, second):
            at = self.records.last(arm, seeds)
            if at is None:
                return Level(where, None, f"{arm} has no point that all its seeds have")
            if (arm, at) in self.excluded:
                return Level(where, None, f"{arm} takes no part: {self.excluded[(arm, at)]}")
            tables.append(self.records.table(arm, seeds, at, metric))
        means = self.draws(seeds).means(tables[0] - tables[1])
        if not np.isfinite(means[0]):
            return Level(where, None, f"{words(metric)} was not measured on both sides")
        return Level(where, interval(means), members=((first,), (second,)))


def _at_level(curves: Sequence[dict[str, Curve]], x: str, level_R: Values) -> Level:
    where = f"at {words(x)} {level_R[0]:.3f}"
    values, members = [], []
    for side in curves:
        at = {arm: curve.at(level_R) for arm, curve in side.items()}
        reaching = {
            arm: value_R
            for arm, value_R in at.items()
            if np.isfinite(value_R[0]) and np.isnan(value_R).mean() <= LOST
        }
        if not reaching:
            names = ", ".join(side)
            return Level(where, None, f"not reached, or in too few of the draws, by {names}")
        members.append(tuple(reaching))
        values.append(_mean_of_known(np.stack(list(reaching.values()))))
    change_R = values[0] - values[1]
    lost = float(np.isnan(change_R).mean())
    if lost > LOST:
        return Level(where, None, f"not reached by both in {lost:.0%} of the draws")
    return Level(where, interval(change_R), members=(members[0], members[1]), lost=lost)


def _mean_of_known(value_MR: Values) -> Values:
    """Over the arms of a family that reach the level in a draw; nan where none does."""
    known = np.isfinite(value_MR)
    count = known.sum(axis=0)
    total = np.where(known, value_MR, 0.0).sum(axis=0)
    means: Values = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means
