"""Plain words beside the numbers: how each metric is read, and how it misleads."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_gdpo.evaluation.results import Kind, MetricInfo


@dataclass(frozen=True)
class Reading:
    """One metric in plain words."""

    meaning: str
    trap: str


_BY_PREFIX: tuple[tuple[str, Reading], ...] = (
    (
        "semantic_diversity",
        Reading(
            "How differently the responses to one prompt point in the space of a sentence encoder: "
            "0 when all say the same, towards 1 when they have nothing in common.",
            "Gibberish scores high, since unrelated noise has nothing in common either. Values "
            "from different encoders cannot be compared.",
        ),
    ),
    (
        "distinct_k",
        Reading(
            "Into how many groups of equivalent responses the samples of one prompt fall.",
            "It depends on the equivalence test, and it grows with the number of samples.",
        ),
    ),
    (
        "distinct",
        Reading(
            "Share of the n-grams of all responses to a prompt that are unique.",
            "Short responses score higher: longer ones repeat words by necessity. Compare only at "
            "matched length, or use the expectation-adjusted form.",
        ),
    ),
    (
        "ead",
        Reading(
            "Number of different n-grams over the number that as many random draws from the "
            "vocabulary would give.",
            "It assumes uniform draws, which language is not; some effect of length stays.",
        ),
    ),
    (
        "self_bleu",
        Reading(
            "Overlap of each response with its siblings, 0 to 100; lower is more diverse.",
            "It sees words, not meaning: paraphrases look diverse. It depends on the tokeniser and "
            "on the number of samples.",
        ),
    ),
    (
        "vendi",
        Reading(
            "The effective number of different responses, from 1 to the number of samples.",
            "It inherits the encoder's idea of similarity and grows with the number of samples.",
        ),
    ),
    (
        "utility",
        Reading(
            "What a reader with limited patience gains from reading the responses in turn, when "
            "only new ones count.",
            "It needs a trustworthy score for each response; a weak reward makes it a count.",
        ),
    ),
    (
        "surprise",
        Reading(
            "Nats a token by which the responses surprise the reference more than its own text "
            "would: about 0 for its own samples, several for noise.",
            "Sampling at another temperature alone moves it away from 0.",
        ),
    ),
    (
        "finished",
        Reading(
            "Share of responses that ended by themselves instead of being cut off.",
            "Cut-off responses have no end, so their length says nothing.",
        ),
    ),
    (
        "ascii",
        Reading(
            "Share of characters from the ASCII set.",
            "Not a judgement: other scripts are not worse. A sudden change is worth a look.",
        ),
    ),
    (
        "perplexity",
        Reading(
            "How surprising the responses are to the reference model.",
            "Low is not good by itself: repetition is very predictable. Very high means text that "
            "the reference takes for noise.",
        ),
    ),
    (
        "kl",
        Reading(
            "How far the model has moved from its reference; 0 is no difference.",
            "Sums over a response grow with its length, so compare a value a token as well. An "
            "estimate from samples is noisy and may even be negative.",
        ),
    ),
    (
        "win_rate",
        Reading(
            "How often a judge prefers this response to the other one; a tie counts half.",
            "Judges favour long answers and the place an answer stands in. Both orders are asked, "
            "and contradictions are counted as ties.",
        ),
    ),
    (
        "valid",
        Reading(
            "Share of responses that are not empty and hold printable text.",
            "A floor, not a mark of quality: fluent nonsense is valid.",
        ),
    ),
    (
        "repetition",
        Reading(
            "How much of a response repeats itself.",
            "Refrains and lists repeat with good reason; look at the samples.",
        ),
    ),
    (
        "reward.vader",
        Reading(
            "Sentiment from a word list, -1 to 1.",
            "It follows human ratings of the film reviews with a correlation of 0.43 only, and a "
            "model can please it by piling up praise.",
        ),
    ),
)
_BY_KIND: dict[Kind, Reading] = {
    "diversity": Reading(
        "How different the responses to one prompt are from each other.",
        "A model that writes noise maximises it: read it beside quality, never alone.",
    ),
    "quality": Reading(
        "How good single responses are, by this measure.",
        "A learned or rule-based score can be pleased without getting better; many favour length.",
    ),
    "length": Reading(
        "How long responses are.",
        "Neither longer nor shorter is better, but most other metrics depend on it.",
    ),
    "divergence": Reading(
        "How far the model has moved from its reference.",
        "Small is safe, not good: an untrained model has none.",
    ),
}


def reading(name: str, info: MetricInfo) -> Reading:
    """The words for a metric: its own where there are some, else those of its kind."""
    for prefix, found in _BY_PREFIX:
        if name.startswith(prefix):
            return found
    return _BY_KIND[info.kind]


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
