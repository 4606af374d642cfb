"""What a reader has to know before the figures: what is missing, blank, cut, unread or left out.

A flag takes a point off the fronts; a notice leaves it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from nemo_gdpo.evaluation.results import Comparison, Point, Results, Run

SHOWN = 3
"""Names in a line; the others are counted."""
UNREAD = "unread_by_"
"""Counts of responses that a measure cannot read, by its name."""


def notices(results: Results) -> list[str]:
    """Complete sentences, the gravest first; none where nothing has to be said."""
    found = [f"Not measured: {part.what} ({part.reason})." for part in results.missing]
    found += [
        f"Without a verdict: {line}." for line in map(_undecided, results.comparisons) if line
    ]
    found += _unscored(results)
    found += _counted(results)
    if any(point.num_prompts == 1 for run in results.runs for point in run.points):
        found.append(
            "There is one prompt only, so the figures have no intervals and say nothing about "
            "other prompts."
        )
    return found


def some(names: list[str]) -> str:
    """`a, b, c and 4 more`."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _points(results: Results) -> Iterator[tuple[Run, Point]]:
    for run in results.runs:
        for point in run.points:
            yield run, point


def _by_point(results: Results, count_of: Callable[[Point], int]) -> str:
    """`base T=1 (3 of 96), ...` for the points where something was counted; empty for none."""
    parts = [
        f"{run.name} {point.sampling.label()} ({count} of {point.counts.get('responses', 0)})"
        for run, point in _points(results)
        if (count := count_of(point))
    ]
    return ", ".join(parts)


def _limit_of(run: Run) -> str:
    limit = run.facts.get("generation.max_tokens")
    return f" (max_tokens={limit})" if isinstance(limit, int) else ""


def _counted(results: Results) -> list[str]:
    kinds: list[tuple[str, Callable[[Point], int], str]] = [
        ("Blank responses", lambda p: p.counts.get("empty", 0), ""),
        (
            "Cut off at their greatest length"
            + "".join(dict.fromkeys(map(_limit_of, results.runs))),
            lambda p: p.counts.get("finish.length", 0),
            "; their lengths and their ends are not the model's",
        ),
        ("Ended in another way than by themselves or for their length", _ended_otherwise, ""),
        (
            "Responses whose words are not known (a script without white space and without a "
            "dictionary here)",
            lambda p: p.counts.get("without_words", 0),
            "; figures that count words are missing for their prompts",
        ),
        (
            "Responses that the encoder reads in part (evaluation.encoder has fewer tokens)",
            lambda p: p.counts.get("cut_by_encoder", 0),
            "",
        ),
    ]
    found = [
        f"{what}: {where}{remark}."
        for what, count_of, remark in kinds
        if (where := _by_point(results, count_of))
    ]
    measures = dict.fromkeys(
        name for _, point in _points(results) for name in point.counts if name.startswith(UNREAD)
    )
    for name in measures:
        where = _by_point(results, partial(_unread, name))
        if where:
            what = _what(name.removeprefix(UNREAD))
            found.append(f"Written in characters that {what} does not know: {where}.")
    return found


def _what(measure: str) -> str:
    return "the encoder" if measure == "encoder" else f"the reward {measure}"


def _unread(name: str, point: Point) -> int:
    """Responses that a measure cannot read; none where a flag says so already."""
    flagged = any(flag.name == "unread" for flag in point.flags)
    return 0 if flagged else point.counts.get(name, 0)


def _ended_otherwise(point: Point) -> int:
    known = ("finish.stop", "finish.length")
    return sum(
        count
        for name, count in point.counts.items()
        if name.startswith("finish.") and name not in known
    )


def _unscored(results: Results) -> list[str]:
    found = []
    for run, point in _points(results):
        for reward in dict.fromkeys(item.reward for item in point.unscored):
            items = [item for item in point.unscored if item.reward == reward]
            names = some([f"{item.id!r} response {item.response}" for item in items])
            found.append(
                f"Without a value of the reward {reward}: {len(items)} responses of {run.name} "
                f"{point.sampling.label()} ({names}; {items[0].reason}). It is missing for their "
                "prompts."
            )
    return found


def _undecided(comparison: Comparison) -> str:
    """`2 refused (p1, p7), 1 cut (p3)` with the pairs' run; empty where all were decided."""
    kinds = ("refused", "cut", "failed", "unparsable")
    parts = []
    for kind in kinds:
        items = [item for item in comparison.undecided if item.outcome == kind]
        if items:
            names = some(list(dict.fromkeys(repr(item.id) for item in items)))
            parts.append(f"{len(items)} {kind} (prompts {names}: {items[0].reason})")
    if not parts:
        return ""
    of = f"{comparison.run} {comparison.sampling.label()} against {comparison.against}"
    return f"{of}: pairs {', '.join(parts)}"
