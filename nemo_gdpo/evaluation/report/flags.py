"""Flags: reasons why a point's diversity is not to be taken at face value.

Noise and endless repetition look diverse, each to some metric. A flagged point stays in every table
and plot, marked, and the report gives it no place on a frontier.
"""

from __future__ import annotations

from collections.abc import Mapping

from nemo_gdpo.config.evaluation import EvaluationConfig
from nemo_gdpo.evaluation.results import Flag, Interval


def find_flags(
    metrics: Mapping[str, Interval], type_token_ratio: float | None, evaluation: EvaluationConfig
) -> list[Flag]:
    """Find the flags of a point.

    Args:
        metrics: of the point.
        type_token_ratio: share of unique words where it is too high for a language, else None.
        evaluation: the limits, and what was measured.
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
                f"tokens surprise the reference by {excess_nll.mean:.2f} nats more than its own "
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
    if not evaluation.rewards and evaluation.reference_model is None:
        found.append(
            Flag(
                "unmeasured",
                "neither a reward nor a reference model was given: diversity alone says nothing, "
                "since noise has the most of it",
            )
        )
    return found
