"""Plain words beside the numbers: how each metric is read, and how it misleads."""

from __future__ import annotations

from nemo_gdpo.evaluation.metrics.definitions import LENGTH, QUALITY, WIN_RATE
from nemo_gdpo.evaluation.metrics.metric import Reading
from nemo_gdpo.evaluation.metrics.table import reading_of
from nemo_gdpo.evaluation.results import Kind, MetricInfo

_BY_KIND: dict[Kind, Reading] = {
    "diversity": Reading(
        "How different the responses to one prompt are from each other.",
        "A model that writes noise maximises it: read it beside quality, never alone.",
    ),
    "quality": QUALITY,
    "length": LENGTH,
    "divergence": Reading(
        "How far the model has moved from its reference.",
        "Small is safe, not good: an untrained model has none.",
    ),
}
"""Words for metrics that the table does not know: results may have been put together elsewhere."""


def reading(name: str, info: MetricInfo) -> Reading:
    """The words for a metric: the table's, else those of its kind."""
    return reading_of(name) or _BY_KIND[info.kind]


WIN_RATES = f"{WIN_RATE.reading.meaning} {WIN_RATE.reading.trap}"
INTERVALS = (
    "Every figure is a mean over prompts. The brackets are the interval that holds {level} of the "
    "means when prompts are drawn anew (percentile bootstrap). It says how much the choice of "
    "prompts matters; it does not cover another training seed. Overlapping brackets do not prove "
    "that two runs are equal."
)
PAIRED = (
    "Diversity alone says little: noise is as diverse as it gets. So it always stands beside "
    "quality and length here, and points that look degenerate are flagged and kept off the fronts."
)
