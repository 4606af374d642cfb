"""Axis limits of the frontier plot.

A collapsed model may lie so far off that everything else would shrink to a dot. Flagged points far
outside the others are drawn at the edge, with their figures beside them; sound points never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_gdpo.evaluation.report.frontier import FrontierPoint

REACH = 0.5
"""Flagged points are within the plot up to this share of the sound points' range beyond it."""
MARGIN = 0.1


@dataclass(frozen=True)
class Window:
    """Limits of both axes."""

    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, points: Sequence[FrontierPoint]) -> Window | None:
        """Limits that hold all sound points; None where no point has to be moved to the edge."""
        sound = [point for point in points if not point.flags]
        if not sound:
            return None
        x_low, x_high = min(p.x.low for p in sound), max(p.x.high for p in sound)
        y_low, y_high = min(p.y.low for p in sound), max(p.y.high for p in sound)
        reach_x, reach_y = REACH * (x_high - x_low), REACH * (y_high - y_low)
        near = [
            point
            for point in points
            if x_low - reach_x <= point.x.mean <= x_high + reach_x
            and y_low - reach_y <= point.y.mean <= y_high + reach_y
        ]
        if len(near) == len(points):
            return None
        x_low, x_high = (
            min([x_low, *(p.x.mean for p in near)]),
            max([x_high, *(p.x.mean for p in near)]),
        )
        y_low, y_high = (
            min([y_low, *(p.y.mean for p in near)]),
            max([y_high, *(p.y.mean for p in near)]),
        )
        # A plane needs an extent, even when all sound points are one.
        pad_x = MARGIN * (x_high - x_low) or MARGIN
        pad_y = MARGIN * (y_high - y_low) or MARGIN
        return cls(x_low - pad_x, x_high + pad_x, y_low - pad_y, y_high + pad_y)

    def holds(self, point: FrontierPoint) -> bool:
        """Whether the point's mean lies inside."""
        inside_x = self.left <= point.x.mean <= self.right
        return inside_x and self.bottom <= point.y.mean <= self.top

    def nearest(self, point: FrontierPoint) -> tuple[float, float]:
        """Position at which the point is drawn: at the edge, if it lies outside."""
        inset_x = 0.03 * (self.right - self.left)
        inset_y = 0.03 * (self.top - self.bottom)
        x = min(max(point.x.mean, self.left + inset_x), self.right - inset_x)
        y = min(max(point.y.mean, self.bottom + inset_y), self.top - inset_y)
        return x, y


def outside(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points that are drawn at the edge."""
    window = Window.around(points)
    return [] if window is None else [point for point in points if not window.holds(point)]
