"""What the page and the console say of runs beside each other without a judge."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_gdpo.evaluation.report.numbers import plain_interval, plain_number
from nemo_gdpo.evaluation.results import Interval, LengthMatched, Results, Similarity

SIMILARITY_TITLE = "Similarity across models"
SIMILARITY = (
    "Mean cosine of sentence embeddings between the responses of two runs to the same prompt, "
    "every one with every one; beside a run's own name, among its own different responses. Two "
    "models as alike as each is to itself answer alike (inter-model homogeneity, arXiv 2510.22954)."
)
MATCHED_TITLE = "Diversity at matched length"
MATCHED = (
    "Diversity metrics depend on length (arXiv 2505.16245). Here responses to the same prompt are "
    "paired by their number of words, the nearest first, and the others are left out. Both runs "
    "have equally many responses left to a prompt, fewer than in the tables above: compare within "
    "a row only. The last column is the difference on all responses."
)


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else plain_interval(interval)


def similarity_rows(similarities: list[Similarity]) -> list[list[str]]:
    """A matrix for each sampling point: (sampling, run, a cell for each run)."""
    names = list(dict.fromkeys(item.run for item in similarities))
    cells = {}
    for item in similarities:
        label = item.sampling.label()
        cells[label, item.run, item.against] = cells[label, item.against, item.run] = item.cosine
    labels = dict.fromkeys(item.sampling.label() for item in similarities)
    return [
        [label, own, *(_shown(cells.get((label, own, other))) for other in names)]
        for label in labels
        for own in names
    ]


def matched_rows(matched: list[LengthMatched]) -> list[list[str]]:
    """A row for each metric of each comparison."""
    return [
        [
            f"{item.run} - {item.against}",
            item.sampling.label(),
            name,
            _shown(metric.run),
            _shown(metric.against),
            _shown(metric.difference),
            _shown(metric.raw_difference),
        ]
        for item in matched
        for name, metric in item.metrics.items()
    ]


MATCHED_HEADER = (
    "runs",
    "sampling",
    "metric",
    "run, matched",
    "against, matched",
    "difference, matched",
    "difference, all responses",
)


def matched_counts(item: LengthMatched) -> str:
    """One line about what was matched."""
    lengths = [
        "-" if length is None else plain_number(length.mean)
        for length in (item.words, item.against_words)
    ]
    return (
        f"{item.run} and {item.against} at {item.sampling.label()}, within "
        f"{item.tolerance:.0%} of the longer one: {item.pairs} pairs of responses, "
        f"{item.dropped} of each without a partner; {item.prompts} prompts with two pairs or more, "
        f"of {lengths[0]} and {lengths[1]} words"
    )


def console_lines(results: Results) -> Iterator[str]:
    """For below the table: the headline's diversity at matched length, and the similarities."""
    name = results.headline.diversity
    for item in results.length_matched:
        yield f"  matched by length: {matched_counts(item)}"
        metric = item.metrics.get(name)
        if metric is not None:
            yield (
                f"    {name}: {_shown(metric.run)} against {_shown(metric.against)}, difference "
                f"{_shown(metric.difference)}; on all responses {_shown(metric.raw_difference)}"
            )
    for one in results.similarities:
        if one.run != one.against:
            yield (
                f"  similarity of {one.run} and {one.against} at {one.sampling.label()}: "
                f"{_shown(one.cosine)}"
            )
