"""The metrics of an evaluation: names, kinds, units and what they are."""

from __future__ import annotations

from nemo_gdpo.config.evaluation import EvaluationConfig
from nemo_gdpo.evaluation.results import Headline, MetricInfo


def has_classes(evaluation: EvaluationConfig) -> bool:
    """Can responses be told apart by NoveltyBench's partition?"""
    return evaluation.encoder is not None or evaluation.novelty.equivalence == "classifier"


def describe_metrics(evaluation: EvaluationConfig) -> dict[str, MetricInfo]:
    """Every metric that the settings ask for, in the order of a report."""
    return {
        **_diversity(evaluation),
        **_quality(evaluation),
        **_divergence(evaluation),
        "length_words": MetricInfo(
            "length", "none", "words", "Mean length; compare diversity at similar length only"
        ),
        "length_tokens": MetricInfo(
            "length", "none", "tokens", "Mean length in the model's tokens, an end token included"
        ),
    }


def _diversity(evaluation: EvaluationConfig) -> dict[str, MetricInfo]:
    found = {}
    if evaluation.encoder is not None:
        found["semantic_diversity"] = MetricInfo(
            "diversity",
            "higher",
            "",
            "1 - mean cosine of sentence embeddings over pairs of responses (Kwon et al. 2024)",
        )
    for n in evaluation.distinct:
        found[f"distinct_{n}"] = MetricInfo(
            "diversity", "higher", "", f"Unique over total {n}-grams; falls with length"
        )
    for n in evaluation.distinct:
        found[f"ead_{n}"] = MetricInfo(
            "diversity",
            "higher",
            "",
            f"Unique {n}-grams over what uniform draws from {evaluation.ead_vocabulary_size} give "
            "(Liu et al. 2022)",
        )
    found["self_bleu"] = MetricInfo(
        "diversity",
        "lower",
        "0-100",
        "Mean BLEU against the other responses (sacrebleu, 13a, exp smoothing, effective order)",
    )
    if evaluation.encoder is not None:
        found["vendi"] = MetricInfo(
            "diversity",
            "higher",
            "responses",
            "Effective number of different responses, from cosines (Friedman & Dieng 2023)",
        )
    if has_classes(evaluation):
        novelty = evaluation.novelty
        test = (
            f"cosine >= {novelty.cosine:g}"
            if novelty.equivalence == "cosine"
            else "the given classifier"
        )
        found["distinct_k"] = MetricInfo(
            "diversity",
            "higher",
            "classes",
            f"Classes of equivalent responses, by {test} (NoveltyBench, Zhang et al. 2025)",
        )
    return found


def _quality(evaluation: EvaluationConfig) -> dict[str, MetricInfo]:
    found = {}
    for reward in evaluation.rewards:
        name = f"reward.{reward.title}"
        found[name] = MetricInfo("quality", "higher", "", f"Mean of {reward.kind} over responses")
        found[f"{name}.best"] = MetricInfo("quality", "higher", "", "Best response of a prompt")
        found[f"{name}.worst"] = MetricInfo("quality", "higher", "", "Worst response of a prompt")
        found[f"{name}.std"] = MetricInfo(
            "quality", "none", "", "Standard deviation over the responses of a prompt"
        )
    if evaluation.novelty.utility_reward is not None:
        found["utility_k"] = MetricInfo(
            "quality",
            "higher",
            "1-10",
            "Value to a reader who goes on, repeated classes worth nothing (NoveltyBench)",
        )
    if evaluation.reference_model is not None:
        found["perplexity"] = MetricInfo(
            "quality",
            "lower",
            "",
            "exp of the mean -log q of response tokens under the reference (geometric mean over "
            "prompts); repetition lowers it, too",
        )
        found["surprise"] = MetricInfo(
            "quality",
            "lower",
            "nats/token",
            "-log q minus the reference's entropy; 0 for its own text, several for noise",
        )
    found["valid"] = MetricInfo(
        "quality", "higher", "share", "Responses that are not empty, printable and free of loops"
    )
    found["finished"] = MetricInfo(
        "quality", "none", "share", "Responses that ended by themselves, not for their length"
    )
    found["repetition"] = MetricInfo(
        "quality", "lower", "share", "Repeated 4-grams within a response (Welleck et al. 2020)"
    )
    found["ascii"] = MetricInfo("quality", "none", "share", "ASCII characters; not judged")
    return found


def _divergence(evaluation: EvaluationConfig) -> dict[str, MetricInfo]:
    if evaluation.reference_model is None:
        return {}
    of = "of the sampled distribution to the reference"
    return {
        "kl": MetricInfo(
            "divergence", "lower", "nats", f"KL {of} per response: exact per token, summed along it"
        ),
        "kl_token": MetricInfo("divergence", "lower", "nats/token", f"Exact KL {of} per token"),
        "kl_sampled": MetricInfo(
            "divergence", "lower", "nats", f"KL {of} per response, as mean of log p(y) - log q(y)"
        ),
        "kl_k3": MetricInfo(
            "divergence",
            "lower",
            "nats",
            f"KL {of} per response, as mean of e^r - 1 - r; heavy-tailed",
        ),
    }


def headline(evaluation: EvaluationConfig) -> Headline:
    """The metrics that are put beside each other."""
    if evaluation.encoder is not None:
        diversity = "semantic_diversity"
    elif evaluation.distinct:
        diversity = f"distinct_{max(evaluation.distinct)}"
    else:
        diversity = "self_bleu"
    rewards = evaluation.rewards
    return Headline(
        diversity=diversity,
        quality=f"reward.{rewards[0].title}" if rewards else "valid",
        divergence=None if evaluation.reference_model is None else "kl",
    )
