"""Style of runs in plots and legends: a colour, a shape and a dash each, so that none of them is
told apart by colour alone.

Plots on the page are drawn once. Their colours are placeholders that `plots_svg` turns into CSS
variables, so that one drawing suits light and dark; PNG files take the light palette.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Vertices = tuple[tuple[float, float], ...]
Dash = Literal["solid"] | tuple[float, tuple[float, ...]]

LIGHT_RUNS = (
    "#0b63b0", "#b93a06", "#0d6e66", "#9b1ba8", "#7d5800", "#4b5563", "#b8103a", "#44700c",
)  # fmt: skip
"""Colours of the runs, at least 4.5 to 1 against white."""
DARK_RUNS = (
    "#6cb6ff", "#ff9b5e", "#4fd1c5", "#e58df2", "#e3b341", "#aab4c2", "#ff8fa3", "#a3d65c",
)  # fmt: skip
"""The same hues, at least 4.5 to 1 against the dark page."""
DASHES: tuple[Dash, ...] = (
    "solid",
    (0, (5, 2)),
    (0, (1, 1.6)),
    (0, (5, 2, 1, 2)),
)


@dataclass(frozen=True)
class Palette:
    """Colours of one drawing."""

    ink: str
    muted: str
    grid: str
    surface: str
    runs: tuple[str, ...]


LIGHT = Palette("#1c2127", "#59626d", "#dfe3e8", "#ffffff", LIGHT_RUNS)
PLACEHOLDERS = Palette(
    "#fe0a01",
    "#fe0a02",
    "#fe0a03",
    "#fe0a04",
    tuple(f"#fe0b{n:02x}" for n in range(len(LIGHT_RUNS))),
)
"""Colours that occur nowhere else, for `plots_svg` to replace."""
VARIABLES = {
    PLACEHOLDERS.ink: "var(--ink)",
    PLACEHOLDERS.muted: "var(--muted)",
    PLACEHOLDERS.grid: "var(--line)",
    PLACEHOLDERS.surface: "var(--surface)",
    **{colour: f"var(--run-{n})" for n, colour in enumerate(PLACEHOLDERS.runs)},
}


def _regular(corners: int, *, turn: float = 0.0, inner: float | None = None) -> Vertices:
    """A regular polygon, or a star with `inner` as the radius of its notches."""
    count = corners if inner is None else 2 * corners
    points = []
    for n in range(count):
        radius = 1.0 if inner is None or n % 2 == 0 else inner
        angle = math.pi / 2 + math.radians(turn) + 2 * math.pi * n / count
        points.append((round(radius * math.cos(angle), 4), round(radius * math.sin(angle), 4)))
    return tuple(points)


SHAPES: tuple[tuple[str, Vertices], ...] = (
    ("circle", _regular(24)),
    ("square", _regular(4, turn=45)),
    ("triangle", _regular(3)),
    ("diamond", _regular(4, inner=None)),
    ("star", _regular(5, inner=0.45)),
    ("triangle down", _regular(3, turn=180)),
    ("cross", _regular(4, turn=45, inner=0.35)),
    ("pentagon", _regular(5)),
    ("plus", _regular(4, inner=0.35)),
)
"""Name and corners in a unit circle, y upwards. Their number shares no factor with the colours'."""


@dataclass(frozen=True)
class RunStyle:
    """Style of one run."""

    index: int
    colour: int
    """Index into a palette's runs."""
    shape: str
    vertices: Vertices
    dash: Dash

    def swatch_points(self) -> str:
        """The corners for an SVG polygon in a box from -1 to 1, y downwards."""
        return " ".join(f"{x:g},{-y:g}" for x, y in self.vertices)


def run_style(index: int) -> RunStyle:
    """The style of the run at this place; 72 runs differ in colour and shape."""
    shape, vertices = SHAPES[index % len(SHAPES)]
    colours = len(LIGHT_RUNS)
    return RunStyle(
        index, index % colours, shape, vertices, DASHES[(index // colours) % len(DASHES)]
    )
