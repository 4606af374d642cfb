"""The pictures of docs/evidence.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.film_reviews.evidence.compare import Comparison
from examples.film_reviews.evidence.records import BASE, Records

COLOURS = {
    "dpo": "#4477aa",
    "gdpo-tb": "#ee6677",
    "gdpo-subtb": "#aa3377",
    "gdpo-db": "#ccbb44",
    "odpo-log": "#228833",
    "spl": "#66ccee",
    "dpo-divpo": "#bbbbbb",
}
"""Of families; tells them apart for the colour-blind (Paul Tol's bright scheme)."""
MARKERS = "os^Dv*"
DPI = 140


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), layout="constrained")
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no version in the file: the same records give the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    pyplot.close(figure)


def along_runs(
    records: Records,
    comparison: Comparison,
    families: Sequence[str],
    *,
    x: str,
    y: str,
    labels: tuple[str, str, str],
    path: Path,
) -> None:
    """One line an arm, from the untouched model through every update that was measured.

    Args:
        families: to draw, those that were run.
        x, y: metrics.
        labels: title, and the axes' names.
        path: PNG.
    """
    figure, axes = _axes(*labels)
    for family in families:
        for number, arm in enumerate(records.arms_of(family)):
            points = [(BASE, (0, 1.0))]
            updates = next(iter(records.by_arm[arm].values())).updates
            points += [(arm, (update, 1.0)) for update in updates]
            found = [
                (comparison.figure(*point, x), comparison.figure(*point, y)) for point in points
            ]
            known = [(a, b) for a, b in found if a is not None and b is not None]
            if not known:
                continue
            axes.errorbar(
                [a.mean for a, _ in known],
                [b.mean for _, b in known],
                yerr=[
                    [b.mean - b.low for _, b in known],
                    [b.high - b.mean for _, b in known],
                ],
                color=COLOURS.get(family, "#333333"),
                marker=MARKERS[number % len(MARKERS)],
                linewidth=1.4,
                markersize=5,
                elinewidth=0.7,
                alpha=0.9,
                label=arm,
            )
    _sweep(comparison, records, x, y, axes)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    _save(figure, path)


def _sweep(comparison: Comparison, records: Records, x: str, y: str, axes: Any) -> None:
    """The untouched model over its temperatures, where both figures are known there."""
    points = sorted(next(iter(records.by_arm[BASE].values())).points, key=lambda point: point[1])
    found = [(comparison.figure(BASE, p, x), comparison.figure(BASE, p, y)) for p in points]
    known = [(a.mean, b.mean) for a, b in found if a is not None and b is not None]
    if len(known) > 1:
        axes.plot(*zip(*known, strict=True), ":", color="#333333", label="untouched, cooler")


def label_efficiency(records: Records, comparison: Comparison, path: Path) -> bool:
    """Reward after the last update against labels; False when there is nothing to draw."""
    figure, axes = _axes("Reward for labels", "labels asked for (mean over seeds)", "reward")
    drawn = False
    for family, colour, marker in (("adpo", "#ee6677", "o"), ("random", "#4477aa", "s")):
        rows = []
        for arm in records.arms_of(family):
            reward = comparison.figure(arm, records.last(arm), "reward")
            some = records.by_arm[arm].values()
            if reward is not None:
                rows.append((sum(r.labels for r in some) / len(some), reward))
        rows.sort(key=lambda row: row[0])
        if rows:
            drawn = True
            axes.errorbar(
                [labels for labels, _ in rows],
                [reward.mean for _, reward in rows],
                yerr=[
                    [reward.mean - reward.low for _, reward in rows],
                    [reward.high - reward.mean for _, reward in rows],
                ],
                color=colour,
                marker=marker,
                label={"adpo": "asked where unsure (ADPO)", "random": "asked at random"}[family],
            )
    if "dpo-b0.1" in records.by_arm:
        everything = comparison.figure("dpo-b0.1", records.last("dpo-b0.1"), "reward")
        if everything is not None:
            axes.axhline(everything.mean, color="#333333", linestyle=":", label="all labels (DPO)")
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)
    return drawn
