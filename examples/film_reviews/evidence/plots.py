"""The pictures of docs/evidence.md.

Only matplotlib's objects are used, no pyplot: nothing global is touched and no display is needed.
The same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.film_reviews.evidence.bootstrap import Interval
from examples.film_reviews.evidence.claims import CONTROL_FAILED, Verdict
from examples.film_reviews.evidence.curves import Comparison, Level
from examples.film_reviews.evidence.records import BASE, At, words

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Of families in their order; told apart by the colour-blind (Paul Tol's bright scheme)."""
INK = "#333333"
MARKERS = "osD^v*"
SIZE = (7.2, 4.6)
DPI = 140


@dataclass(frozen=True)
class Plot:
    """Runs as lines in the plane of two metrics."""

    name: str
    """Of the file, `<name>.png`."""
    title: str
    alt: str
    families: tuple[str, ...]
    x: str
    y: str
    labels: tuple[str, str]
    sweep: bool = False
    """Whether the untouched model over its temperatures is drawn as well."""


_REWARD, _DIVERSITY = "reward (higher is better)", "semantic diversity (higher is better)"
PLOTS = (
    Plot(
        "evidence",
        "Diversity beside reward, along the runs",
        "Semantic diversity beside reward along the runs of DPO and GDPO, one line an arm",
        ("dpo", "gdpo-tb"),
        "reward",
        "semantic_diversity",
        (_REWARD, _DIVERSITY),
        sweep=True,
    ),
    Plot(
        "evidence_coverage",
        "The reference's most probable sentences",
        "Share of the reference's most probable sentences that is kept, beside reward",
        ("dpo", "gdpo-tb"),
        "reward",
        "coverage",
        (_REWARD, "share that keeps a tenth of its probability"),
    ),
    Plot(
        "evidence_others",
        "The other ways to train, along the runs",
        "Semantic diversity beside reward along the runs of the other arms",
        ("dpo", "gdpo-subtb", "gdpo-db", "gdpo-released", "ipo", "spl", "dpo-divpo"),
        "reward",
        "semantic_diversity",
        (_REWARD, _DIVERSITY),
    ),
    Plot(
        "evidence_frontier",
        "Reward for divergence, along the runs",
        "Reward beside divergence from the reference, for DPO, GDPO and ODPO with each offset",
        ("dpo", "gdpo-tb", "odpo-log", "odpo-identity", "odpo-log1p"),
        "kl",
        "reward",
        ("KL from the reference, nats a response", _REWARD),
    ),
)


def along_runs(comparison: Comparison, plot: Plot, directory: Path) -> bool:
    """One line an arm with 95 % bars; False, and no file, when none of them was measured."""
    figure, axes = _axes(plot.title, *plot.labels)
    drawn = 0
    for family, colour in zip(plot.families, COLOURS, strict=False):
        for number, arm in enumerate(comparison.records.members(family)):
            path = comparison.path(arm, comparison.records.seeds([arm]))
            marker = MARKERS[number % len(MARKERS)]
            drawn += _line(axes, comparison, path, plot, arm, colour, marker, "-")
    if plot.sweep:
        path = comparison.path(BASE, comparison.records.seeds([BASE]), sweep=True)
        if len(path) > 1:
            name = "untouched, cooler"
            drawn += _line(axes, comparison, path, plot, name, INK, ".", ":")
    if drawn:
        axes.legend(fontsize=8, frameon=False, ncols=2)
        _save(figure, directory / f"{plot.name}.png")
    return drawn > 0


def _line(
    axes: Axes,
    comparison: Comparison,
    path: Sequence[tuple[str, At]],
    plot: Plot,
    label: str,
    colour: str,
    marker: str,
    dash: str,
) -> int:
    found = [
        (comparison.figure(arm, at, plot.x), comparison.figure(arm, at, plot.y)) for arm, at in path
    ]
    known = [(x, y) for x, y in found if x is not None and y is not None]
    if len(known) < 2:  # the untouched model's alone is no run
        return 0
    xs, ys = [x for x, _ in known], [y for _, y in known]
    axes.errorbar(
        [x.mean for x in xs],
        [y.mean for y in ys],
        xerr=_bars(xs),
        yerr=_bars(ys),
        color=colour,
        marker=marker,
        linestyle=dash,
        linewidth=1.5,
        markersize=5,
        elinewidth=0.6,
        alpha=0.9,
        label=label,
    )
    return 1


def labels_plot(comparison: Comparison, path: Path) -> bool:
    """Reward after the last update beside labels; False, and no file, without such arms."""
    records = comparison.records
    figure, axes = _axes("Reward for labels", "labels asked for (mean over seeds)", _REWARD)
    drawn = False
    for family, name, colour, marker in (
        ("adpo", "asked where unsure (ADPO)", COLOURS[1], "o"),
        ("random", "asked at random", COLOURS[0], "s"),
    ):
        rows = sorted((records.labels(arm), arm) for arm in records.members(family))
        known = [(n, value) for n, arm in rows if (value := _last(comparison, arm)) is not None]
        if known:
            drawn = True
            values = [value for _, value in known]
            ys = [value.mean for value in values]
            axes.errorbar(
                [n for n, _ in known],
                ys,
                yerr=_bars(values),
                color=colour,
                marker=marker,
                label=name,
            )
    everything = _last(comparison, "dpo-b0.1") if "dpo-b0.1" in records.by_arm else None
    if drawn and everything is not None:
        axes.axhline(everything.mean, color=INK, linestyle=":", label="all labels (DPO)")
        axes.axhspan(everything.low, everything.high, color=INK, alpha=0.08, linewidth=0)
    if drawn:
        axes.legend(fontsize=8, frameon=False)
        _save(figure, path)
    return drawn


def _last(comparison: Comparison, arm: str) -> Interval | None:
    at = comparison.records.last(arm)
    return None if at is None else comparison.figure(arm, at, "reward")


def ablation_plot(verdicts: Sequence[Verdict], path: Path) -> bool:
    """A bar for every level of what may be claimed; False, and no file, without one."""
    rows = [
        (_bar_name(verdict, level), level.difference)
        for verdict in verdicts
        if verdict.outcome != CONTROL_FAILED
        for level in verdict.levels
        if level.difference is not None
    ]
    if not rows:
        return False
    figure, axes = _axes("What each part adds", "difference, first minus second", "")
    figure.set_size_inches(SIZE[0], 1.2 + 0.45 * len(rows))
    places = range(len(rows))
    values = [value for _, value in rows]
    axes.barh(places, [v.mean for v in values], color=COLOURS[0], height=0.55)
    axes.errorbar([v.mean for v in values], places, xerr=_bars(values), fmt="none", ecolor=INK)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_yticks(places, [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    _save(figure, path)
    return True


def _bar_name(verdict: Verdict, level: Level) -> str:
    claim = verdict.claim
    return f"{claim.first} - {claim.second}\n{words(claim.y)} {level.where}"


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    # A mean may lie outside its percentile interval; a bar of negative length is refused.
    return [
        [max(0.0, v.mean - v.low) for v in values],
        [max(0.0, v.high - v.mean) for v in values],
    ]


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No version in the file: the same records give the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
