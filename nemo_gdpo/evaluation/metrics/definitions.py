"""The rows of the table of metrics, in the order of a report. `table` answers questions about them.

A new metric is a function and a row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

from nemo_gdpo.config.evaluation import EvaluationConfig
from nemo_gdpo.evaluation.judging.judge import win_rate
from nemo_gdpo.evaluation.metrics import per_prompt
from nemo_gdpo.evaluation.metrics.diversity import (
    distinct_k,
    log_det_diversity,
    semantic_diversity,
    vendi_score,
)
from nemo_gdpo.evaluation.metrics.excess_nll import (
    excess_nll,
    kl,
    kl_k3,
    kl_sampled,
    kl_token,
    perplexity,
)
from nemo_gdpo.evaluation.metrics.metric import (
    Metric,
    Parameters,
    Reading,
)
from nemo_gdpo.evaluation.metrics.safety import CONTRADICTION, THRESHOLD, TOXICITY

T = TypeVar("T")


def _map_optional(value: T | None, function: Callable[[T], float]) -> float | None:
    return None if value is None else function(value)


def _share_above(values: Sequence[float]) -> float:
    return statistics.fmean(value > THRESHOLD for value in values)


# --- what the settings ask for ----------------------------------------------------------------


def _each_distinct(evaluation: EvaluationConfig) -> Sequence[Parameters]:
    return [Parameters({"n": n}) for n in evaluation.distinct]


def _each_ead(evaluation: EvaluationConfig) -> Sequence[Parameters]:
    size = evaluation.ead_vocabulary_size
    return [Parameters({"n": n, "vocabulary_size": size}) for n in evaluation.distinct]


def _classes(evaluation: EvaluationConfig) -> Sequence[Parameters]:
    novelty = evaluation.novelty
    if novelty.equivalence == "classifier":
        return [Parameters(words={"test": "the given classifier"})]
    return [Parameters(words={"test": f"cosine >= {novelty.cosine:g}"})]


def _each_reward(evaluation: EvaluationConfig) -> Sequence[Parameters]:
    return [Parameters({"reward": r.title}, {"kind": r.kind}) for r in evaluation.rewards]


def _utility(evaluation: EvaluationConfig) -> Sequence[Parameters]:
    novelty = evaluation.novelty
    if novelty.utility_reward is None:
        return []
    settings = {
        "reward": novelty.utility_reward,
        "thresholds": novelty.utility_thresholds,
        "patience": novelty.patience,
    }
    return [Parameters(settings)]


# --- the rows -----------------------------------------------------------------------------------

QUALITY = Reading(
    "How good single responses are, by this measure.",
    "A learned or rule-based score can be pleased without getting better; many favour length.",
)
LENGTH = Reading(
    "How long responses are.",
    "Neither longer nor shorter is better, but most other metrics depend on it.",
)
_VADER = Reading(
    "Sentiment from a word list, -1 to 1.",
    "It follows human ratings of the film reviews with a correlation of 0.43 only, and a model can "
    "please it by piling up praise.",
)
_KL = Reading(
    "How far the model has moved from its reference; 0 means no difference.",
    "Sums over a response grow with its length, so compare a value a token as well. An estimate "
    "from samples is noisy and may even be negative.",
)
_TOXICITY = Reading(
    "How toxic a classifier takes the responses to be.",
    "It knows words better than intents: quoted insults, names of groups and dialects score high, "
    "polite harm scores low; and silence is never toxic. Compare runs by one classifier only.",
)
_KL_OF = "of the sampled distribution to the reference"

DIVERSITY_ROWS = (
    Metric(
        "semantic_diversity",
        "diversity",
        "higher",
        "",
        "1 - mean cosine of sentence embeddings over pairs of responses (Kwon et al. 2024)",
        Reading(
            "How differently the responses to one prompt point in the space of a sentence encoder: "
            "0 when all say the same, towards 1 when they have nothing in common.",
            "Gibberish scores high, since unrelated noise has nothing in common either. Values "
            "from different encoders cannot be compared.",
        ),
        lambda prompt: _map_optional(prompt.embeddings_KD, semantic_diversity),
        needs="encoder",
    ),
    Metric(
        "distinct_{n:d}",
        "diversity",
        "higher",
        "",
        "Unique over total {n}-grams; falls with length",
        Reading(
            "Share of the n-grams of all responses to a prompt that are unique.",
            "Short responses score higher: longer ones repeat words by necessity. Compare only at "
            "matched length, or use the expectation-adjusted form.",
        ),
        per_prompt.distinct,
        columns=("distinct_2",),
        over=_each_distinct,
    ),
    Metric(
        "ead_{n:d}",
        "diversity",
        "higher",
        "",
        "Unique {n}-grams over what uniform draws from {vocabulary_size} give (Liu et al. 2022)",
        Reading(
            "Number of different n-grams over the number that as many random draws from the "
            "vocabulary would give.",
            "It assumes uniform draws, which language is not; some effect of length stays.",
        ),
        per_prompt.ead,
        over=_each_ead,
    ),
    Metric(
        "distinct_openings",
        "diversity",
        "higher",
        "",
        "Different first three words over responses",
        Reading(
            "Share of the responses to a prompt that begin in different ways: 1 when no two begin "
            "alike.",
            "It sees three words and nothing of the rest, and it falls with the number of samples; "
            "a prompt that dictates the beginning leaves nothing to vary.",
        ),
        per_prompt.openings,
    ),
    Metric(
        "self_bleu",
        "diversity",
        "lower",
        "0-100",
        "Mean BLEU against the other responses (sacrebleu, 13a, exp smoothing, effective order)",
        Reading(
            "Overlap of each response with its siblings, 0 to 100; lower is more diverse.",
            "It sees words, not meaning: paraphrases look diverse. It depends on the tokeniser and "
            "on the number of samples.",
        ),
        per_prompt.overlap,
        columns=("self_bleu",),
    ),
    Metric(
        "vendi",
        "diversity",
        "higher",
        "responses",
        "Effective number of different responses, from cosines (Friedman & Dieng 2023)",
        Reading(
            "The effective number of different responses, from 1 to the number of samples.",
            "It inherits the encoder's idea of similarity and grows with the number of samples.",
        ),
        lambda prompt: _map_optional(prompt.cosine_KK, vendi_score),
        needs="encoder",
        columns=("vendi",),
    ),
    Metric(
        "log_det",
        "diversity",
        "higher",
        "nats",
        "log det(I + S), S the cosines of the responses (Kulesza & Taskar 2012)",
        Reading(
            "Volume that the responses to one prompt span in the space of a sentence encoder, over "
            "all subsets of them: log(1 + K) when all say the same, K log 2 when no two have "
            "anything in common.",
            "It inherits the encoder's idea of similarity and grows with the number of samples; "
            "a few outliers raise it little, and gibberish raises it most.",
        ),
        lambda prompt: _map_optional(prompt.cosine_KK, log_det_diversity),
        needs="encoder",
    ),
    Metric(
        "distinct_k",
        "diversity",
        "higher",
        "classes",
        "Classes of equivalent responses, by {test} (NoveltyBench, Zhang et al. 2025)",
        Reading(
            "Into how many groups of equivalent responses the samples of one prompt fall.",
            "It depends on the equivalence test, and it grows with the number of samples.",
        ),
        lambda prompt: _map_optional(prompt.classes, distinct_k),
        needs="classes",
        columns=("distinct_k",),
        over=_classes,
    ),
)
REWARD_ROWS = (
    Metric(
        "reward.{reward}",
        "quality",
        "higher",
        "",
        "Mean of {kind} over responses",
        QUALITY,
        per_prompt.reward_of(statistics.fmean),
        over=_each_reward,
        own_readings={"vader": _VADER},
    ),
    Metric(
        "reward.{reward}.best",
        "quality",
        "higher",
        "",
        "Best response of a prompt",
        QUALITY,
        per_prompt.reward_of(max),
        over=_each_reward,
        own_readings={"vader": _VADER},
    ),
    Metric(
        "reward.{reward}.worst",
        "quality",
        "higher",
        "",
        "Worst response of a prompt",
        QUALITY,
        per_prompt.reward_of(min),
        over=_each_reward,
        own_readings={"vader": _VADER},
    ),
    Metric(
        "reward.{reward}.std",
        "quality",
        "none",
        "",
        "Standard deviation over the responses of a prompt",
        QUALITY,
        per_prompt.reward_std,
        over=_each_reward,
        own_readings={"vader": _VADER},
    ),
)
QUALITY_ROWS = (
    Metric(
        "utility_k",
        "quality",
        "higher",
        "1-10",
        "Value to a reader who may read on, repeated classes worth nothing (NoveltyBench)",
        Reading(
            "What a reader with limited patience gains from reading the responses in turn, when "
            "only new ones count.",
            "It needs a trustworthy score for each response; a weak reward makes it a count.",
        ),
        per_prompt.utility,
        needs="classes",
        columns=("utility_k",),
        over=_utility,
    ),
    Metric(
        "perplexity",
        "quality",
        "lower",
        "",
        "exp of the mean -log q of response tokens under the reference (geometric mean over "
        "prompts); repetition lowers it, too",
        Reading(
            "How surprising the responses are to the reference model.",
            "Low is not good by itself: repetition is very predictable. Very high means text that "
            "the reference takes for noise.",
        ),
        lambda prompt: perplexity(prompt.scores),
        needs="reference",
        columns=("perplexity",),
        log_interval=True,
    ),
    Metric(
        "surprise",
        "quality",
        "lower",
        "nats/token",
        "-log q minus the reference's entropy; 0 for its own text, several for noise",
        Reading(
            "Nats a token by which the responses surprise the reference more than its own text "
            "would: about 0 for its own samples, several for noise.",
            "Sampling at another temperature alone moves it away from 0.",
        ),
        lambda prompt: excess_nll(prompt.scores),
        needs="reference",
    ),
    Metric(
        "valid",
        "quality",
        "higher",
        "share",
        "Responses that are not empty, printable and free of loops",
        Reading(
            "Share of responses that are not empty, hold printable text and do not loop.",
            "A floor, not a mark of quality: fluent nonsense is valid.",
        ),
        lambda prompt: statistics.fmean(check.valid for check in prompt.checks),
        columns=("valid",),
    ),
    Metric(
        "finished",
        "quality",
        "none",
        "share",
        "Responses that ended by themselves, not for their length",
        Reading(
            "Share of responses that ended by themselves instead of being cut off.",
            "Cut-off responses have no end, so their length says nothing.",
        ),
        lambda prompt: statistics.fmean(why == "stop" for why in prompt.row.finish_reasons),
    ),
    Metric(
        "repetition",
        "quality",
        "lower",
        "share",
        "Repeated 4-grams within a response (Welleck et al. 2020)",
        Reading(
            "How much of a response repeats itself.",
            "Refrains and lists repeat with good reason; look at the samples.",
        ),
        per_prompt.repetition,
        columns=("repetition",),
    ),
    Metric(
        "ascii",
        "quality",
        "none",
        "share",
        "ASCII characters; not judged",
        Reading(
            "Share of characters from the ASCII set.",
            "Not a judgement: other scripts are not worse. A sudden change is worth a look.",
        ),
        lambda prompt: statistics.fmean(check.ascii for check in prompt.checks),
    ),
)
SAFETY_ROWS = (
    Metric(
        "toxicity",
        "quality",
        "lower",
        "0-1",
        "Mean probability of the toxic class, by the given classifier",
        _TOXICITY,
        per_prompt.reward_of(statistics.fmean, TOXICITY),
        needs="toxicity",
        columns=("toxicity",),
    ),
    Metric(
        "toxic",
        "quality",
        "lower",
        "share",
        f"Responses with a toxicity above {THRESHOLD:g}",
        _TOXICITY,
        per_prompt.reward_of(_share_above, TOXICITY),
        needs="toxicity",
    ),
    Metric(
        "contradiction",
        "quality",
        "lower",
        "share",
        f"Responses that contradict their prompt with a probability above {THRESHOLD:g}, by the "
        "given classifier of inference",
        Reading(
            "Share of responses that contradict what the user said last.",
            "Classifiers of inference know pairs of sentences: of long answers, of questions and "
            "of requests they judge poorly, and what is off the topic contradicts nothing.",
        ),
        per_prompt.reward_of(_share_above, CONTRADICTION),
        needs="entailment",
        columns=("contradiction",),
    ),
)
WIN_RATE = Metric(
    "win_rate",
    "quality",
    "higher",
    "share",
    "Pairs that a judge decides for the run against another run or the data set's responses; a tie "
    "counts half (Zheng et al. 2023)",
    Reading(
        "How often a judge prefers this response to the other one; a tie counts half.",
        "Judges favour long answers and the place an answer stands in. Both orders are asked, and "
        "contradictions are counted as ties.",
    ),
    win_rate,
    needs="judge",
)
DIVERGENCE_ROWS = (
    Metric(
        "kl",
        "divergence",
        "lower",
        "nats",
        f"KL {_KL_OF} per response: exact per token, summed along it",
        _KL,
        lambda prompt: kl(prompt.scores),
        needs="policy",
    ),
    Metric(
        "kl_token",
        "divergence",
        "lower",
        "nats/token",
        f"Exact KL {_KL_OF} per token",
        _KL,
        lambda prompt: kl_token(prompt.scores),
        needs="policy",
        columns=("kl_token",),
    ),
    Metric(
        "kl_sampled",
        "divergence",
        "lower",
        "nats",
        f"KL {_KL_OF} per response, as mean of log p(y) - log q(y)",
        _KL,
        lambda prompt: kl_sampled(prompt.scores),
        needs="policy",
    ),
    Metric(
        "kl_k3",
        "divergence",
        "lower",
        "nats",
        f"KL {_KL_OF} per response, as mean of e^r - 1 - r; heavy-tailed",
        _KL,
        lambda prompt: kl_k3(prompt.scores),
        needs="policy",
    ),
)
LENGTH_ROWS = (
    Metric(
        "length_words",
        "length",
        "none",
        "words",
        "Mean length; compare diversity at similar length only",
        LENGTH,
        per_prompt.length_words,
        columns=("length_words",),
    ),
    Metric(
        "length_tokens",
        "length",
        "none",
        "tokens",
        "Mean length in the model's tokens, an end token included",
        LENGTH,
        per_prompt.length_tokens,
    ),
)
