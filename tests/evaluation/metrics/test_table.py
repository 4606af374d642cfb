"""The table of metrics: which ones the settings ask for, and what the rows say."""

from __future__ import annotations

import pytest

import nemo_gdpo.evaluation.diversity as contract
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.evaluation import EVALUATE, EvaluationConfig
from nemo_gdpo.evaluation.metrics import diversity
from nemo_gdpo.evaluation.metrics.definitions import WIN_RATE
from nemo_gdpo.evaluation.metrics.metric import PromptResponses
from nemo_gdpo.evaluation.metrics.table import (
    TABLE,
    console_columns,
    headline,
    metrics_of,
    reading_of,
)
from nemo_gdpo.evaluation.metrics.validity import check_response
from nemo_gdpo.generation.rows import parse_row

from ..written_runs import row

ALL = (
    "evaluation.rewards=[vader,{name: mine, kind: python, entry_point: 'm:f'}]",
    "evaluation.reference_model=/m",
    "evaluation.novelty.utility_reward=mine",
    "evaluation.safety.toxicity=/t",
    "evaluation.safety.entailment=/n",
)


def settings(*overrides: str) -> EvaluationConfig:
    return EVALUATE.parse(compose(list(overrides), root=EVALUATE).plain).evaluation


def names(*overrides: str) -> list[str]:
    return [metric.name for metric in metrics_of(settings(*overrides))]


def prompt(outputs: list[str], **rewards: list[float]) -> PromptResponses:
    stored, _ = parse_row(row("p", outputs), "file, line 1")
    return PromptResponses(stored, [check_response(text) for text in outputs], rewards)


def test_order_of_a_report() -> None:
    """The rewards of a name stand together, the best beside the mean."""
    assert names(*ALL) == [
        "semantic_diversity",
        *("distinct_1", "distinct_2", "distinct_3", "ead_1", "ead_2", "ead_3"),
        *("distinct_openings", "self_bleu", "vendi", "log_det", "distinct_k"),
        *("reward.vader", "reward.vader.best", "reward.vader.worst", "reward.vader.std"),
        *("reward.mine", "reward.mine.best", "reward.mine.worst", "reward.mine.std"),
        *("utility_k", "perplexity", "surprise", "valid", "finished", "repetition", "ascii"),
        *("toxicity", "toxic", "contradiction"),
        *("kl", "kl_token", "kl_sampled", "kl_k3"),
        *("length_words", "length_tokens"),
    ]


def test_what_has_no_source_is_not_asked_for() -> None:
    bare = ("evaluation.encoder=null", "evaluation.rewards=[]", "evaluation.distinct=[2]")
    words = ["valid", "finished", "repetition", "ascii", "length_words", "length_tokens"]
    assert names(*bare) == ["distinct_2", "ead_2", "distinct_openings", "self_bleu", *words]
    classifier = ("evaluation.novelty.equivalence=classifier", "evaluation.novelty.classifier=/c")
    assert set(names(*bare, *classifier)) - set(names(*bare)) == {"distinct_k"}


@pytest.mark.parametrize("overrides", [(), ALL, ("evaluation.encoder=null",)])
def test_the_headline_is_measured(overrides: tuple[str, ...]) -> None:
    head = headline(settings(*overrides))
    leading = {head.diversity, head.quality, head.divergence} - {None}
    assert leading <= set(names(*overrides))


def test_parameters_fill_texts_and_reach_the_function() -> None:
    metrics = {m.name: m for m in metrics_of(settings(*ALL, "evaluation.ead_vocabulary_size=2"))}
    assert metrics["distinct_2"].description == "Unique over total 2-grams; falls with length"
    assert "from 2 give" in metrics["ead_1"].description
    assert metrics["reward.mine"].description == "Mean of python over responses"
    assert "by cosine >= 0.8" in metrics["distinct_k"].description
    own = prompt(["a b a", "a c"], mine=[1.0, 4.0])
    # a b, b a, a c of three 2-grams; a, b, c of five words, and 2 (1 - 1/2^5) expected.
    assert metrics["distinct_2"].function(own) == 1.0
    assert metrics["distinct_1"].function(own) == pytest.approx(3 / 5)
    assert metrics["ead_1"].function(own) == pytest.approx(3 / (2 * (1 - 0.5**5)))
    assert metrics["distinct_3"].function(own) == 1.0
    assert metrics["reward.mine"].function(own) == 2.5
    assert metrics["reward.mine.best"].function(own) == 4.0
    assert metrics["reward.mine.worst"].function(own) == 1.0
    assert metrics["reward.mine.std"].function(own) == pytest.approx(1.5 * 2**0.5)


def test_what_is_not_defined_is_none() -> None:
    metrics = {m.name: m for m in metrics_of(settings(*ALL))}
    single = prompt(["one"], mine=[1.0])
    for name in (
        *(
            "semantic_diversity",
            "vendi",
            "log_det",
            "distinct_k",
            "self_bleu",
            "distinct_2",
            "ead_2",
        ),
        *("reward.mine.std", "utility_k", "repetition", "length_tokens"),
        *("perplexity", "surprise", "kl", "kl_token", "kl_sampled", "kl_k3"),
    ):
        assert metrics[name].function(single) is None, name


def test_safety_by_hand() -> None:
    """0.2, 0.5 and 0.8: a mean of 0.5, and one of three is above one half; 0.5 itself is not."""
    metrics = {m.name: m for m in metrics_of(settings(*ALL))}
    own = prompt(["a", "b", "c"], toxicity=[0.2, 0.5, 0.8], contradiction=[0.6, 0.9, 0.1])
    assert metrics["toxicity"].function(own) == pytest.approx(0.5)
    assert metrics["toxic"].function(own) == pytest.approx(1 / 3)
    assert metrics["contradiction"].function(own) == pytest.approx(2 / 3)
    for name in ("toxicity", "toxic", "contradiction"):
        assert metrics[name].direction == "lower"
        assert metrics[name].function(prompt(["a"])) is None, name


def test_win_rate_counts_ties_half_and_skips_non_verdicts() -> None:
    assert WIN_RATE.function(["win", "tie", "loss", "inconsistent", "unparsable"]) == 0.5
    assert WIN_RATE.function(["win", "win", "loss", "tie"]) == 0.625
    assert WIN_RATE.function(["unparsable"]) is None


def test_words_are_found_by_the_whole_name() -> None:
    metrics = {m.name: m for m in metrics_of(settings(*ALL))}
    for name, metric in metrics.items():
        assert reading_of(name) == metric.reading, name
    words = reading_of("reward.vader.best")
    assert words is not None and "word list" in words.meaning
    assert reading_of("reward.mine") != words
    # Neither a prefix nor a likeness is enough.
    for other in ("valid_fraction", "kl_per_token", "distinct_of_mine", "vendi_2", "sentiment"):
        assert reading_of(other) is None, other


def test_every_row_can_be_read() -> None:
    for metric in TABLE:
        assert metric.reading.meaning.endswith(".") and metric.reading.trap.endswith(".")
        assert metric.description and not metric.description.endswith(".")
    assert len({metric.name for metric in TABLE}) == len(TABLE)


def test_columns_of_the_console_are_metrics() -> None:
    assert console_columns() <= set(names(*ALL))


def test_the_contract_names_stay() -> None:
    for name in contract.__all__:
        assert vars(contract)[name] is vars(diversity)[name]
    assert len(contract.__all__) == 9
