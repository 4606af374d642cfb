"""Flags: reasons why a point's diversity is not to be taken at face value.

Noise and endless repetition look diverse, each to some metric. A flagged point stays in every table
and plot, marked, and the report gives it no place on a frontier.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nemo_gdpo.config.evaluation import EvaluationConfig
from nemo_gdpo.evaluation.metrics.safety import CONTRADICTION, TOXICITY
from nemo_gdpo.evaluation.report.notices import UNREAD
from nemo_gdpo.evaluation.results import Flag, Interval

_SAFETY = "a classifier of that language in evaluation.safety"
_UNREAD_BY = {
    "encoder": ("the encoder", "a multilingual encoder in evaluation.encoder"),
    TOXICITY: ("the classifier of toxicity", _SAFETY),
    CONTRADICTION: ("the classifier of inference", _SAFETY),
}
"""Measure that cannot read -> (what it is called, what to give instead); others are rewards."""


def find_flags(
    metrics: Mapping[str, Interval],
    type_token_ratio: float | None,
    evaluation: EvaluationConfig,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> list[Flag]:
    """Find the flags of a point.

    Args:
        metrics: of the point.
        type_token_ratio: share of unique words where it is too high for a language, else None.
        evaluation: the limits, and what was measured.
        counts: of the point: responses, and those that a measure cannot read.
    """
    limits = evaluation.flags
    found = []
    valid, repetition = metrics.get("valid"), metrics.get("repetition")
    excess_nll = metrics.get("surprise")
    if valid is not None and valid.mean < limits.valid:
        found.append(
            Flag(
                "invalid",
                f"only {valid.mean:.0%} of the responses are valid (limit {limits.valid:.0%}): "
                "empty, unprintable or in a loop",
            )
        )
    if repetition is not None and repetition.mean > limits.repetition:
        found.append(
            Flag(
                "repetitive",
                f"{repetition.mean:.0%} of the 4-grams of a response repeat an earlier one (limit "
                f"{limits.repetition:.0%})",
            )
        )
    if excess_nll is not None and excess_nll.mean > limits.surprise:
        found.append(
            Flag(
                "noise",
                f"tokens surprise the reference by {excess_nll.mean:z.2f} nats more than its own "
                f"would (limit {limits.surprise:g}): text of another kind, or no language",
            )
        )
    if type_token_ratio is not None:
        found.append(
            Flag(
                "type_token_ratio",
                f"of 500 words {type_token_ratio:.0%} are different ones; text of a language "
                "repeats its common words",
            )
        )
    found += _unread(counts, limits.unread)
    if not evaluation.rewards and evaluation.reference_model is None:
        found.append(
            Flag(
                "unmeasured",
                "neither a reward nor a reference model was given: diversity alone says nothing, "
                "since noise has the most of it",
            )
        )
    return found


def _unread(counts: Mapping[str, int], limit: float) -> list[Flag]:
    """Measures that cannot read the text: to them all of it is the same."""
    found = []
    for name, count in counts.items():
        share = count / max(1, counts.get("responses", 0))
        if not name.startswith(UNREAD) or share <= limit:
            continue
        measure = name.removeprefix(UNREAD)
        what, remedy = _UNREAD_BY.get(
            measure,
            (f"the reward {measure}", "a reward of that language in evaluation.rewards"),
        )
        found.append(
            Flag(
                "unread",
                f"{what} does not know the characters of {share:.0%} of the responses (limit "
                f"{limit:.0%}), so its figures say nothing; give {remedy}",
            )
        )
    return found
