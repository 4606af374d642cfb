"""Differences between arms at equal reward (or divergence), with intervals over seeds and prompts.

A run's curve begins at the untouched model and goes through every update at which it was measured.
Both sides of a difference are drawn anew together, seeds and prompts with replacement, so that what
makes a prompt or a draw of pairs easy cancels (percentile bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.film_reviews.evidence.records import BASE, Records, Values

LEVEL = 0.95
LOST = 0.2
"""Share of draws in which a curve may fail to reach the level that is asked."""


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds that hold 95 % of the draws."""

    mean: float
    low: float
    high: float

    def text(self) -> str:
        """`+0.031 [0.010, 0.052]`."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def plain(self) -> str:
        """Of a figure that is no difference."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Difference:
    """First side minus second."""

    value: Interval
    seeds: tuple[int, ...]
    where: str
    """At which level, in words."""
    members: tuple[int, int] = (1, 1)
    """Arms of each side that reach the level."""


class Draws:
    """Seeds and prompts, drawn anew: row 0 is the data themselves."""

    def __init__(self, seeds: int, prompts: int, resamples: int) -> None:
        random = np.random.default_rng(20261128)
        own_S, own_P = np.arange(seeds)[None], np.arange(prompts)[None]
        self.seeds_RS = np.vstack([own_S, random.integers(0, seeds, (resamples, seeds))])
        self.prompts_RP = np.vstack([own_P, random.integers(0, prompts, (resamples, prompts))])

    def means(self, value_SP: Values) -> Values:
        """The mean of each draw, [R + 1]; prompts without a value are left out."""
        known_SP = np.isfinite(value_SP)
        weight_RS = _counts(self.seeds_RS, value_SP.shape[0])
        weight_RP = _counts(self.prompts_RP, value_SP.shape[1])
        filled = np.where(known_SP, value_SP, 0.0)
        total = np.einsum("rs,sp,rp->r", weight_RS, filled, weight_RP, optimize=True)
        count = np.einsum(
            "rs,sp,rp->r", weight_RS, known_SP.astype(float), weight_RP, optimize=True
        )
        means: Values = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        return means


def _counts(drawn_RN: np.ndarray, size: int) -> Values:
    """How often each one was drawn, [R, N]."""
    counts = np.zeros((len(drawn_RN), size))
    np.add.at(counts, (np.arange(len(drawn_RN))[:, None], drawn_RN), 1.0)
    return counts


def interval(values_R: Values) -> Interval:
    """Of draws whose first is the data's own."""
    outside = (1.0 - LEVEL) / 2.0
    low, high = np.nanquantile(values_R[1:], [outside, 1.0 - outside])
    return Interval(float(values_R[0]), float(low), float(high))


def _mean_of_known(value_MR: Values) -> Values:
    """Over the first axis; nan where none is known."""
    known = np.isfinite(value_MR)
    count = known.sum(axis=0)
    total = np.where(known, value_MR, 0.0).sum(axis=0)
    means: Values = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means


@dataclass(frozen=True)
class Curve:
    """One arm: [R + 1, points] of both axes, in the order of its points."""

    x_RU: Values
    y_RU: Values

    def at(self, level: float) -> Values:
        """y where the curve first has this x, [R + 1]; nan where it never has."""
        x, y = self.x_RU - level, self.y_RU
        found = np.full(len(x), np.nan)
        for i in reversed(range(x.shape[1] - 1)):
            x0, x1 = x[:, i], x[:, i + 1]
            crosses = x0 * x1 <= 0
            width = np.where(x1 == x0, 1.0, x1 - x0)
            share = np.where(x1 == x0, 0.0, -x0 / width)
            value = y[:, i] + share * (y[:, i + 1] - y[:, i])
            found = np.where(crosses & np.isfinite(value), value, found)
        return found

    @property
    def reach(self) -> float:
        """The greatest x of the means."""
        return float(np.nanmax(self.x_RU[0]))


class Comparison:
    """Arms side by side."""

    def __init__(
        self, records: Records, resamples: int, excluded: frozenset[tuple[str, int, float]]
    ) -> None:
        self.records = records
        self.resamples = resamples
        self.excluded = excluded
        """(arm, update, temperature) of points that take no part."""

    def along(self, arm: str, seeds: Sequence[int], x: str, y: str, draws: Draws) -> Curve:
        """Along a run, from the untouched model on."""
        path = [(BASE, (0, 1.0))]
        if arm != BASE:
            updates = next(iter(self.records.by_arm[arm].values())).updates
            path += [(arm, (update, 1.0)) for update in updates]
        return self._curve(path, seeds, x, y, draws)

    def over_temperatures(
        self, arm: str, seeds: Sequence[int], x: str, y: str, draws: Draws
    ) -> Curve:
        """Over the temperatures of an arm's last update."""
        update = self.records.last(arm)[0]
        points = next(iter(self.records.by_arm[arm].values())).points
        temperatures = sorted(t for u, t in points if u == update)
        path = [(arm, (update, t)) for t in temperatures]
        return self._curve(path, seeds, x, y, draws)

    def _curve(
        self,
        path: Sequence[tuple[str, tuple[int, float]]],
        seeds: Sequence[int],
        x: str,
        y: str,
        draws: Draws,
    ) -> Curve:
        kept = [(arm, point) for arm, point in path if (arm, *point) not in self.excluded]
        columns = [
            [draws.means(self.records.table(arm, seeds, point, metric)) for arm, point in kept]
            for metric in (x, y)
        ]
        return Curve(np.stack(columns[0], axis=1), np.stack(columns[1], axis=1))

    def draws(self, seeds: Sequence[int]) -> Draws:
        """The same for both sides."""
        return Draws(len(seeds), self.records.prompts, self.resamples)

    def matched(
        self,
        first: str,
        second: str,
        *,
        x: str,
        y: str,
        shares: Sequence[float],
        least_gain: float,
        second_sweep: bool = False,
    ) -> list[Difference] | str:
        """y of the first side minus y of the second where both have the same x.

        Args:
            first, second: arms or families; of a family the mean over its arms that reach the
                level.
            x, y: metrics.
            shares: levels, as shares of what both sides gain over the untouched model.
            least_gain: below it there is nothing to compare.
            second_sweep: the second side's curve runs over temperatures, not along its run.

        Returns:
            One difference a level, or why it cannot be asked.
        """
        sides = [self.records.arms_of(name) for name in (first, second)]
        for name, arms in zip((first, second), sides, strict=True):
            if not arms:
                return f"{name} was not run"
        seeds = self.records.seeds([BASE, *sides[0], *sides[1]])
        if not seeds:
            return "no seed in common"
        draws = self.draws(seeds)
        of_second = self.over_temperatures if second_sweep else self.along
        curves = [
            [self.along(arm, seeds, x, y, draws) for arm in sides[0]],
            [of_second(arm, seeds, x, y, draws) for arm in sides[1]],
        ]
        base = float(draws.means(self.records.table(BASE, seeds, (0, 1.0), x))[0])
        gain = min(max(curve.reach for curve in side) for side in curves) - base
        if gain < least_gain:
            return f"too little {x} in common: {gain:+.3f} over the untouched model"
        found = []
        for share in shares:
            level = base + share * gain
            values, members = [], []
            for side in curves:
                at = [curve.at(level) for curve in side]
                reaching = [one for one in at if np.isfinite(one[0])]
                if not reaching:
                    return f"a side does not reach {x} {level:.3f}"
                members.append(len(reaching))
                values.append(_mean_of_known(np.stack(reaching)))
            change_R = values[0] - values[1]
            if np.isnan(change_R).mean() > LOST:
                return f"{x} {level:.3f} is not reached in more than a fifth of the draws"
            where = f"at {x} {level:.3f} ({level - base:+.3f})"
            found.append(
                Difference(interval(change_R), tuple(seeds), where, (members[0], members[1]))
            )
        return found

    def at_last(self, first: str, second: str, metric: str) -> Difference | str:
        """Difference of a metric after the last update, of two arms; of base: before the first."""
        for name in (first, second):
            if name not in self.records.by_arm:
                return f"{name} was not run"
        seeds = self.records.seeds([first, second])
        if not seeds:
            return "no seed in common"
        draws = self.draws(seeds)
        tables = [
            self.records.table(arm, seeds, self.records.last(arm), metric)
            for arm in (first, second)
        ]
        value = interval(draws.means(tables[0] - tables[1]))
        return Difference(value, tuple(seeds), "after the last update")

    def figure(self, arm: str, point: tuple[int, float], metric: str) -> Interval | None:
        """One metric of one arm at one point; None where no prompt has a value."""
        seeds = self.records.seeds([arm])
        table = self.records.table(arm, seeds, point, metric)
        if not np.isfinite(table).any():
            return None
        return interval(self.draws(seeds).means(table))
