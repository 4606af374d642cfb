"""The results as text: diversity and quality in the same row, always."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_gdpo.evaluation.metrics.table import console_columns
from nemo_gdpo.evaluation.report.across import console_lines
from nemo_gdpo.evaluation.report.notices import notices
from nemo_gdpo.evaluation.report.numbers import plain_interval, plain_number
from nemo_gdpo.evaluation.results import Comparison, Interval, Kind, Point, Results

_ORDER: tuple[Kind, ...] = ("diversity", "quality", "divergence", "length")


def columns(results: Results) -> list[str]:
    """Metrics of the table by kind: the headline's first, then those that have a column."""
    head = results.headline
    leading: dict[Kind, str | None] = {
        "diversity": head.diversity,
        "quality": head.quality,
        "divergence": head.divergence,
    }
    also = console_columns()
    present = {name for run in results.runs for point in run.points for name in point.metrics}
    wanted: list[str | None] = []
    for kind in _ORDER:
        others = [n for n, info in results.metrics.items() if info.kind == kind and n in also]
        wanted += [leading.get(kind), *others]
    return [name for name in dict.fromkeys(wanted) if name is not None and name in present]


def _cell(interval: Interval | None, *, with_interval: bool) -> str:
    if interval is None:
        return "-"
    return plain_interval(interval) if with_interval else plain_number(interval.mean)


def render_table(results: Results) -> str:
    """Rows of runs and points; intervals for the headline metrics; flags and judgements below."""
    names = columns(results)
    head = results.headline
    leading = {head.diversity, head.quality, head.divergence}
    kinds = [results.metrics[name].kind for name in names]
    rows = [["run", "sampling", *names, "flags"]]
    for run in results.runs:
        for point in run.points:
            cells = [
                _cell(point.metrics.get(name), with_interval=name in leading) for name in names
            ]
            rows.append([run.name, point.sampling.label(), *cells, _flags(point)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    above = ["", "", *_blank_repeats(kinds), ""]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [_clip_cells(above, widths), *rows]
    ]
    first = results.runs[0].points[0]
    prompts = "prompt" if first.num_prompts == 1 else "prompts"
    responses = "response" if first.num_samples == 1 else "responses"
    lines.append(f"{first.num_prompts} {prompts}, {first.num_samples} {responses} each")
    for run in results.runs:
        for point in run.points:
            lines += [
                f"  ! {run.name} at {point.sampling.label()}: {flag.message}"
                for flag in point.flags
            ]
    lines += [f"  * {notice}" for notice in notices(results)]
    lines += [*console_lines(results), *map(_comparison_line, results.comparisons)]
    return "\n".join(lines)


def _flags(point: Point) -> str:
    return ", ".join(dict.fromkeys(flag.name for flag in point.flags))


def _blank_repeats(kinds: Sequence[str]) -> list[str]:
    """A kind above its first column only."""
    return [kind if i == 0 or kinds[i - 1] != kind else "" for i, kind in enumerate(kinds)]


def _clip_cells(cells: list[str], widths: list[int]) -> list[str]:
    return [cell[:width] for cell, width in zip(cells, widths, strict=True)]


def _comparison_line(comparison: Comparison) -> str:
    rate = comparison.win_rate
    shown = "no usable answer" if rate is None else _cell(rate, with_interval=True)
    return (
        f"  {comparison.run} at {comparison.sampling.label()} against {comparison.against}, judged "
        f"by {comparison.judge}: win rate {shown} ({comparison.wins} won, {comparison.losses} "
        f"lost, {comparison.ties} tied, {comparison.inconsistent} of them by place; "
        f"{comparison.unparsable} without a verdict, {comparison.refused} refused, "
        f"{comparison.cut} cut, {comparison.failed} not answered)"
    )
