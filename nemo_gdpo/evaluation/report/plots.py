"""The report's plots, by matplotlib: the two frontiers, and each headline metric over the sweep.

Only matplotlib's objects are used, no pyplot: nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as Shape

from nemo_gdpo.evaluation.report.frontier import Frontier, FrontierPoint
from nemo_gdpo.evaluation.report.style import Palette, RunStyle, run_style
from nemo_gdpo.evaluation.report.window import Window
from nemo_gdpo.evaluation.results import Interval, Results

LABEL_LIMIT = 12
"""Most points whose sampling is named; more names would only cover the others."""
WIDE = (5.6, 4.1)
NARROW = (3.7, 3.9)
SWEEP = (2.9, 2.5)
"""Size in inches. On the page a plot is shown at about 1.3 times its size, so that 8 points are
readable: a plot for a column, one for a phone, and one of several in a row."""

DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "none": ""}


def axis_label(name: str, unit: str, direction: str, *, width: int | None = None) -> str:
    """`semantic diversity (higher is better)`, with a unit where there is one."""
    notes = [note for note in (unit, DIRECTIONS[direction]) if note]
    label = name.replace("_", " ")
    text = f"{label} ({', '.join(notes)})" if notes else label
    if width is not None and len(text) > width and notes:
        return f"{label}\n({', '.join(notes)})"
    return text


def frontier_figure(
    frontier: Frontier, runs: Sequence[str], palette: Palette, *, narrow: bool, legend: bool
) -> Figure:
    """One plane with every point, both intervals, each run's sweep as a line, and the front.

    Args:
        frontier: what to draw.
        runs: all runs of the report in their order, which decides how each looks.
        palette: colours.
        narrow: for a phone.
        legend: draw it inside the figure, for a separate file.
    """
    figure, axes = _plane(palette, NARROW if narrow else WIDE)
    drawn = [
        (n, name) for n, name in enumerate(runs) if any(p.run == name for p in frontier.points)
    ]
    label_points = len(frontier.points) <= (LABEL_LIMIT if not narrow else LABEL_LIMIT // 2)
    _draw_front(axes, frontier, palette)
    window = Window.around(frontier.points)
    for index, name in drawn:
        points = [point for point in frontier.points if point.run == name]
        _draw_run(axes, points, run_style(index), palette, window, label_points=label_points)
    if window is not None:
        axes.set_xlim(window.left, window.right)
        axes.set_ylim(window.bottom, window.top)
    width = 30 if narrow else None
    for setter, axis in ((axes.set_xlabel, frontier.x), (axes.set_ylabel, frontier.y)):
        setter(axis_label(axis.metric, axis.unit, axis.better, width=width), parse_math=False)
    if legend:
        _legend(figure, drawn, palette, front=frontier.is_compared)
    return figure


def _draw_front(axes: Axes, frontier: Frontier, palette: Palette) -> None:
    front = frontier.front()
    if not frontier.is_compared:
        return
    # A staircase: what lies inside it is dominated. A straight line would promise mixtures.
    xs, ys = [point.x.mean for point in front], [point.y.mean for point in front]
    step_xs = [x for x in xs for _ in "12"][:-1]
    step_ys = [y for y in ys for _ in "12"][1:]
    (line,) = axes.plot(
        step_xs,
        step_ys,
        color=palette.muted,
        linewidth=6,
        alpha=0.2,
        solid_capstyle="round",
        solid_joinstyle="round",
        zorder=1,
    )
    line.set_gid("front-line")
    rings = axes.plot(
        xs,
        ys,
        linestyle="none",
        marker="o",
        markersize=15,
        markerfacecolor="none",
        markeredgecolor=palette.muted,
        markeredgewidth=1.1,
        zorder=1.5,
    )
    rings[0].set_gid("front-rings")


def _draw_run(
    axes: Axes,
    points: Sequence[FrontierPoint],
    style: RunStyle,
    palette: Palette,
    window: Window | None,
    *,
    label_points: bool,
) -> None:
    colour = palette.runs[style.colour]
    inside = [point for point in points if window is None or window.holds(point)]
    (line,) = axes.plot(
        [point.x.mean for point in inside],
        [point.y.mean for point in inside],
        color=colour,
        linestyle=style.dash,
        linewidth=1.1,
        alpha=0.65,
        zorder=2,
    )
    line.set_gid(f"series-{style.index}.line")
    for number, point in enumerate(points):
        x, y = (point.x.mean, point.y.mean) if window is None else window.nearest(point)
        if point in inside:
            bars = axes.errorbar(
                x,
                y,
                xerr=_bar(point.x),
                yerr=_bar(point.y),
                fmt="none",
                ecolor=colour,
                elinewidth=1.1,
                alpha=0.55,
                zorder=2.5,
            )
            for part, artist in enumerate(bars[2]):
                artist.set_gid(f"series-{style.index}.bar-{number}-{part}")
        (mark,) = axes.plot(
            [x],
            [y],
            linestyle="none",
            marker=_marker(style),
            markersize=_size(number, len(points)),
            markerfacecolor=palette.surface if point.flags else colour,
            markeredgecolor=colour if point.flags else palette.surface,
            markeredgewidth=1.6 if point.flags else 0.7,
            zorder=3,
        )
        mark.set_gid(f"series-{style.index}.point-{number}")
        if label_points and point in inside:
            text = axes.annotate(
                point.sampling.label(),
                (x, y),
                xytext=(7, 6),
                textcoords="offset points",
                fontsize=7,
                color=palette.muted,
                zorder=4,
            )
            text.set_gid(f"series-{style.index}.label-{number}")


def sweep_figure(results: Results, metric: str, palette: Palette, *, legend: bool) -> Figure:
    """One metric at every sampling setting, one line a run, with intervals."""
    figure, axes = _plane(palette, SWEEP)
    labels = sampling_labels(results)
    count = len(results.runs)
    for index, run in enumerate(results.runs):
        style, colour = run_style(index), palette.runs[run_style(index).colour]
        # Side by side rather than on top of each other.
        shift = (index - (count - 1) / 2) * min(0.08, 0.5 / count)
        found = [
            (labels.index(p.sampling.label()) + shift, p.metrics[metric], bool(p.flags))
            for p in run.points
            if metric in p.metrics
        ]
        if not found:
            continue
        xs, ys = [x for x, _, _ in found], [value.mean for _, value, _ in found]
        (line,) = axes.plot(xs, ys, color=colour, linestyle=style.dash, linewidth=1.1, alpha=0.65)
        line.set_gid(f"series-{index}.line")
        bars = axes.errorbar(
            xs,
            ys,
            yerr=_bars([value for _, value, _ in found]),
            fmt="none",
            ecolor=colour,
            elinewidth=1.1,
            alpha=0.55,
        )
        for part, artist in enumerate(bars[2]):
            artist.set_gid(f"series-{index}.bar-{part}")
        for number, (x, value, flagged) in enumerate(found):
            (mark,) = axes.plot(
                [x],
                [value.mean],
                linestyle="none",
                markersize=7.5,
                marker=_marker(style),
                markerfacecolor=palette.surface if flagged else colour,
                markeredgecolor=colour if flagged else palette.surface,
                markeredgewidth=1.6 if flagged else 0.7,
            )
            mark.set_gid(f"series-{index}.point-{number}")
    axes.set_xticks(range(len(labels)), labels, parse_math=False)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    if len(labels) > 3 and max(map(len, labels)) > 5:
        axes.tick_params(axis="x", rotation=30)
    info = results.metrics[metric]
    axes.set_title(
        axis_label(metric, info.unit, info.direction, width=30),
        fontsize=8.5,
        color=palette.ink,
        loc="left",
        parse_math=False,
    )
    if legend:
        _legend(figure, [(n, r.name) for n, r in enumerate(results.runs)], palette, front=False)
    return figure


def sampling_labels(results: Results) -> list[str]:
    """Every sampling setting that a run has, in the order of the sweep."""
    return list(dict.fromkeys(p.sampling.label() for run in results.runs for p in run.points))


def _size(number: int, count: int) -> float:
    """Later points of a sweep are larger, so that its direction shows."""
    return 9.5 if count == 1 else 7.0 + 5.0 * number / (count - 1)


def _bar(value: Interval) -> list[list[float]]:
    return [[max(0.0, value.mean - value.low)], [max(0.0, value.high - value.mean)]]


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    below, above = zip(*((b[0][0], b[1][0]) for b in map(_bar, values)), strict=True)
    return [list(below), list(above)]


def curve_figure(xs: Sequence[float], ys: Sequence[float], axis: str, palette: Palette) -> Figure:
    """One value along a whole number, as a line with a mark at each.

    Args:
        xs: whole numbers.
        ys: a value each.
        axis: what `xs` counts.
        palette: colours.
    """
    figure, axes = _plane(palette, SWEEP)
    (line,) = axes.plot(xs, ys, color=palette.runs[0], linewidth=1.1, marker="o", markersize=5)
    line.set_gid("series-0.line")
    axes.set_xticks(list(xs) if len(xs) <= LABEL_LIMIT else [xs[0], xs[len(xs) // 2], xs[-1]])
    axes.set_xlabel(axis, parse_math=False)
    return figure


def _plane(palette: Palette, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.grid(color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(palette.muted)
    axes.tick_params(colors=palette.muted, labelcolor=palette.muted, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(palette.ink)
        label.set_fontsize(8.5)
    return figure, axes


def _marker(style: RunStyle) -> Shape:
    # The last corner of a closed path is not drawn to; it says where the path closes.
    return Shape([*style.vertices, style.vertices[0]], closed=True)


def _legend(
    figure: Figure, names: Sequence[tuple[int, str]], palette: Palette, *, front: bool
) -> None:
    handles = []
    for index, name in names:
        style = run_style(index)
        handle = Line2D([], [], color=palette.runs[style.colour], linewidth=1.1, label=name)
        handle.set_linestyle(style.dash)
        handle.set_marker(_marker(style))
        handle.set_markersize(8)
        handle.set_markeredgecolor(palette.surface)
        handles.append(handle)
    if front:
        ring = Line2D([], [], linestyle="none", marker="o", markersize=9, label="Pareto front")
        ring.set_markerfacecolor("none")
        ring.set_markeredgecolor(palette.muted)
        handles.append(ring)
    legend = figure.legend(
        handles=handles,
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        labelcolor=palette.ink,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


@contextmanager
def _drawing(salt: str) -> Iterator[None]:
    """Text stays text, ids depend on the plot only, and a name in another script does not warn."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
            yield
    finally:
        logger.setLevel(level)


def png(figure: Figure, palette: Palette, name: str) -> bytes:
    """The figure as a PNG of 160 dots an inch on the palette's surface."""
    buffer = io.BytesIO()
    with _drawing(name):
        figure.savefig(
            buffer, format="png", dpi=160, facecolor=palette.surface, metadata={"Software": None}
        )
    return buffer.getvalue()


def raw_svg(figure: Figure, name: str) -> str:
    """The figure as matplotlib writes it; `plots_svg.page_svg` makes it fit for a page."""
    buffer = io.StringIO()
    with _drawing(name):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
