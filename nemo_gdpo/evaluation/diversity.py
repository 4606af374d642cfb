"""The diversity of K responses to one prompt, under the name that callers know.

The functions are those of `nemo_gdpo.evaluation.metrics.diversity`.
"""

from __future__ import annotations

from nemo_gdpo.evaluation.metrics.diversity import (
    cross_similarity,
    distinct_k,
    distinct_n,
    expectation_adjusted_distinct,
    log_det_diversity,
    self_bleu,
    semantic_diversity,
    utility_k,
    vendi_score,
)

__all__ = [
    "cross_similarity",
    "distinct_k",
    "distinct_n",
    "expectation_adjusted_distinct",
    "log_det_diversity",
    "self_bleu",
    "semantic_diversity",
    "utility_k",
    "vendi_score",
]
