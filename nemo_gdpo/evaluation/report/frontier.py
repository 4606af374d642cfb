"""Pareto frontiers: which runs give the most of one metric for what they cost in another.

Two frontiers are drawn: quality against diversity (Kwon et al. 2024) and reward against the
divergence from the reference (Amini et al. 2024). A point is one run at one sampling setting. It is
dominated when another is at least as good on both axes and better on one; what nothing dominates
is the Pareto front; one point alone is none. Points that were flagged as degenerate take no part:
they neither stand on the front nor push others off it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from nemo_gdpo.evaluation.results import Interval, Results
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.files import write_output

FILE_NAME = "frontier.json"
LENGTH_TOLERANCE = 0.2
"""Mean lengths further than this share from the median point's are not called matched."""

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Axis:
    """One axis of a frontier."""

    metric: str
    better: Better
    unit: str


@dataclass(frozen=True)
class FrontierPoint:
    """One run at one sampling setting, on both axes, with its intervals."""

    run: str
    sampling: SamplingPoint
    x: Interval
    y: Interval
    length: Interval | None
    """Mean length of its responses; None when none was measured."""
    length_matched: bool | None
    """Within `LENGTH_TOLERANCE` of the median point's length; None without lengths."""
    flags: tuple[str, ...]
    """Why it is taken for degenerate; such a point is outside the comparison."""
    on_front: bool
    dominated_by: tuple[str, ...]
    """Labels of the points that are as good on both axes and better on one, by their means."""
    clearly_dominated_by: tuple[str, ...]
    """Those of them whose intervals lie beyond this point's on both axes."""

    def label(self) -> str:
        """Run and sampling."""
        return f"{self.run} {self.sampling.label()}"


@dataclass(frozen=True)
class Frontier:
    """All points in one plane."""

    name: str
    """File name of the plot, without its ending."""
    title: str
    x: Axis
    y: Axis
    points: tuple[FrontierPoint, ...]
    left_out: tuple[str, ...]
    """Labels of points without a value on one of the axes."""
    caveats: tuple[str, ...]
    """Warnings that a reader needs before reading the plot, in complete sentences."""

    @property
    def is_compared(self) -> bool:
        """Whether two points at least can be compared: one alone is undominated and no front."""
        return sum(not point.flags for point in self.points) > 1

    def front(self) -> tuple[FrontierPoint, ...]:
        """The undominated points, from the worst to the best on x."""
        chosen = [point for point in self.points if point.on_front]
        return tuple(sorted(chosen, key=lambda p: _signed_gain(p.x.mean, self.x.better)))


def _signed_gain(value: float, better: Better) -> float:
    return value if better == "higher" else -value


def dominates(
    first: tuple[float, float], second: tuple[float, float], better: tuple[Better, Better]
) -> bool:
    """Whether `first` is at least as good as `second` on both axes and better on one.

    Equal points do not dominate each other.
    """
    gains = [
        _signed_gain(a, b) - _signed_gain(c, b)
        for a, c, b in zip(first, second, better, strict=True)
    ]
    return min(gains) >= 0 and max(gains) > 0


def _clearly_better(first: Interval, second: Interval, better: Better) -> bool:
    """Whether all of one interval is at least as good as the best of the other.

    One prompt has no interval, so it makes nothing clear.
    """
    if first.n < 2 or second.n < 2:
        return False
    return first.low >= second.high if better == "higher" else first.high <= second.low


def frontiers(results: Results) -> tuple[Frontier, ...]:
    """The frontiers that the headline metrics allow: none, one or both."""
    headline = results.headline
    found = []
    if headline.quality is not None:
        found.append(
            frontier(
                results,
                "quality_diversity",
                "Quality against diversity",
                headline.diversity,
                headline.quality,
            )
        )
        if headline.divergence is not None:
            found.append(
                frontier(
                    results,
                    "reward_divergence",
                    "Reward against divergence from the reference",
                    headline.divergence,
                    headline.quality,
                )
            )
    return tuple(found)


def frontier(results: Results, name: str, title: str, x: str, y: str) -> Frontier:
    """Place every point of every run and find the Pareto front.

    Args:
        results: of an evaluation.
        name: for files.
        title: for the plot.
        x, y: metrics, each with a better direction.

    Raises:
        ValueError: a metric is not described, or neither direction of it is better.
    """
    x_axis, y_axis = _axis(results, x), _axis(results, y)
    length_metric = length_metric_of(results)
    placed: list[FrontierPoint] = []
    left_out: list[str] = []
    for run in results.runs:
        for point in run.points:
            if x not in point.metrics or y not in point.metrics:
                left_out.append(f"{run.name} {point.sampling.label()}")
                continue
            length = point.metrics.get(length_metric) if length_metric else None
            flags = tuple(flag.name for flag in point.flags)
            placed.append(
                FrontierPoint(
                    run.name,
                    point.sampling,
                    point.metrics[x],
                    point.metrics[y],
                    length,
                    None,
                    flags,
                    False,
                    (),
                    (),
                )
            )
    compared = tuple(_compared(placed, (x_axis.better, y_axis.better)))
    return Frontier(
        name, title, x_axis, y_axis, compared, tuple(left_out), tuple(_caveats(compared, left_out))
    )


def _axis(results: Results, metric: str) -> Axis:
    info = results.metrics.get(metric)
    if info is None:
        raise ValueError(f"{metric}: these results do not have that metric")
    if info.direction == "none":
        raise ValueError(f"{metric}: neither direction is better, so it has no frontier")
    return Axis(metric, info.direction, info.unit)


def length_metric_of(results: Results) -> str | None:
    """The length that the report puts beside quality and diversity: words where there are words."""
    lengths = [name for name, info in results.metrics.items() if info.kind == "length"]
    in_words = [name for name in lengths if results.metrics[name].unit == "words"]
    return next(iter(in_words or lengths), None)


def _compared(
    points: Sequence[FrontierPoint], better: tuple[Better, Better]
) -> list[FrontierPoint]:
    sound = [point for point in points if not point.flags]
    lengths = [point.length.mean for point in sound if point.length is not None]
    typical = median(lengths) if lengths else None
    compared = []
    for point in points:
        above = [
            other
            for other in sound
            if dominates((other.x.mean, other.y.mean), (point.x.mean, point.y.mean), better)
        ]
        clearly = [
            other
            for other in above
            if _clearly_better(other.x, point.x, better[0])
            and _clearly_better(other.y, point.y, better[1])
        ]
        matched = (
            None
            if typical is None or point.length is None
            else abs(point.length.mean - typical) <= LENGTH_TOLERANCE * typical
        )
        compared.append(
            FrontierPoint(
                point.run,
                point.sampling,
                point.x,
                point.y,
                point.length,
                matched,
                point.flags,
                on_front=not above and not point.flags,
                dominated_by=tuple(other.label() for other in above),
                clearly_dominated_by=tuple(other.label() for other in clearly),
            )
        )
    return compared


def by_run(points: Sequence[FrontierPoint]) -> str:
    """`dpo (T=0.7, T=1), gdpo (T=1.3)`."""
    runs = dict.fromkeys(point.run for point in points)
    return ", ".join(
        f"{run} ({', '.join(p.sampling.label() for p in points if p.run == run)})" for run in runs
    )


def _caveats(points: Sequence[FrontierPoint], left_out: Sequence[str]) -> list[str]:
    found = []
    flagged = [point for point in points if point.flags]
    if flagged:
        found.append(
            f"Left out of the comparison because they look degenerate: {by_run(flagged)}. They are "
            "drawn hollow."
        )
    if len(points) - len(flagged) == 1:
        found.append("There is one point to compare only, so there is no front.")
    if any(point.x.n < 2 or point.y.n < 2 for point in points):
        found.append("The points are of one prompt: they have no intervals.")
    unmatched = [point for point in points if point.length_matched is False and not point.flags]
    if unmatched:
        names = by_run(unmatched)
        lengths = [p.length.mean for p in points if p.length is not None and not p.flags]
        found.append(
            f"Lengths are not matched: mean lengths go from {min(lengths):z.1f} to "
            f"{max(lengths):z.1f}, and these points are more than {LENGTH_TOLERANCE:.0%} from the "
            f"median one: {names}. Most diversity metrics and many rewards depend on length, so "
            "compare those points with care."
        )
    if any(point.length is None for point in points):
        found.append("Lengths were not measured for every point, so they may differ.")
    if left_out:
        found.append(f"Without a value on one of the axes, and not drawn: {', '.join(left_out)}.")
    return found


def frontiers_to_json(found: Sequence[Frontier]) -> str:
    """Every number of the plots."""
    plain = {"schema": 1, "frontiers": [asdict(one) for one in found]}
    return json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def write_frontiers(found: Sequence[Frontier], output_dir: Path) -> Path:
    """Write `output_dir/frontier.json`, completely or not at all; returns its path.

    Raises:
        UserError: the directory cannot be written.
    """
    return write_output(output_dir / FILE_NAME, frontiers_to_json(found))
