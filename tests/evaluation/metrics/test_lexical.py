"""distinct-n, expectation-adjusted distinct and self-BLEU, by hand and against sacrebleu."""

from __future__ import annotations

import pytest
import sacrebleu

from nemo_gdpo.evaluation.metrics.diversity import (
    distinct_n,
    distinct_openings,
    expectation_adjusted_distinct,
    self_bleu,
)


def test_distinct_by_hand() -> None:
    """10 words of which 4 are different; 8 pairs of words: ab bc cd da ab | bc cd da."""
    responses = ["a b c d a b", "b c d a"]
    assert distinct_n(responses, 1) == pytest.approx(0.4, abs=1e-12)
    assert distinct_n(responses, 2) == pytest.approx(4 / 8, abs=1e-12)
    assert distinct_n(responses, 6) == 1.0


def test_pairs_do_not_reach_over_the_end_of_a_response() -> None:
    assert distinct_n(["a b", "b a"], 2) == 1.0  # ab and ba; joined there would be a third, bb


def test_distinct_openings_by_hand() -> None:
    """`the film was` twice, `a film`, `the film is`: 3 of 4."""
    responses = ["The film was dull.", "the film  was long and good", "A film", "The film is good"]
    assert distinct_openings(responses) == 3 / 4
    assert distinct_openings(responses, words=1) == 2 / 4
    assert distinct_openings(["x y z 1", "x y z 2"]) == 1 / 2
    assert distinct_openings(["", "x"]) == 1.0
    with pytest.raises(ValueError, match="no response"):
        distinct_openings([])


def test_distinct_falls_with_length_and_the_adjusted_one_less() -> None:
    """The same 4 words drawn 10 and 40 times."""
    short, long = ["a b c d a b c d a b"], ["a b c d " * 10]
    assert distinct_n(short, 1) / distinct_n(long, 1) == pytest.approx(4.0)
    adjusted = [expectation_adjusted_distinct(r, 1, 6) for r in (short, long)]
    assert adjusted[0] / adjusted[1] == pytest.approx(1.1916, abs=1e-3)


def test_adjusted_distinct_by_hand() -> None:
    """N = 4, V = 6, C = 10: 4 / (6 (1 - (5/6)^10))."""
    responses = ["a b c d a b", "b c d a"]
    assert expectation_adjusted_distinct(responses, 1, 6) == pytest.approx(0.795076, abs=1e-6)
    assert expectation_adjusted_distinct(["a a"], 1, 1) == 1.0


def test_adjusted_distinct_of_a_great_vocabulary_is_distinct() -> None:
    """(1 - 1/V)^C taken directly is 1 - 1e-15 here, and the expectation would be lost."""
    responses = ["a b c d a b", "b c d a"]
    assert expectation_adjusted_distinct(responses, 1, 10**15) == pytest.approx(0.4, rel=1e-9)


@pytest.mark.parametrize(("responses", "n"), [(["", " "], 1), (["a b"], 3), ([], 1), (["a"], 0)])
def test_no_n_gram_is_undefined_and_not_zero(responses: list[str], n: int) -> None:
    for measure in (
        lambda: distinct_n(responses, n),
        lambda: expectation_adjusted_distinct(responses, n, 10),
    ):
        with pytest.raises(ValueError, match=r"distinct|n-grams"):
            measure()


# --- self-BLEU ------------------------------------------------------------------------------

RESPONSES = [
    "the film was a great joy to watch, really",
    "the film was a great bore to watch, sadly",
    "I did not like it at all",
    "Great film.",
]


def test_self_bleu_is_sacrebleus() -> None:
    expected = [
        sacrebleu.sentence_bleu(
            response,
            [other for j, other in enumerate(RESPONSES) if j != i],
            smooth_method="exp",
            tokenize="13a",
            lowercase=False,
            use_effective_order=True,
        ).score
        for i, response in enumerate(RESPONSES)
    ]
    assert self_bleu(RESPONSES) == pytest.approx(sum(expected) / 4, abs=1e-9)
    assert 5.0 < self_bleu(RESPONSES) < 60.0


def test_self_bleu_by_hand() -> None:
    """`a b` against `a c`: precision 1/2 of words, 0 of 1 pairs smoothed to 1/2: sqrt(1/4)."""
    assert self_bleu(["a b", "a c"]) == pytest.approx(50.0, abs=1e-6)


def test_bounds_of_self_bleu() -> None:
    assert self_bleu(["one two three four five"] * 3) == 100.0
    assert self_bleu(["a b c d e", "v w x y z"]) == 0.0


def test_short_equal_responses_are_not_diverse() -> None:
    """Without the effective order one word has BLEU 0, whatever it says."""
    assert sacrebleu.sentence_bleu("yes", ["yes"], use_effective_order=False).score == 0.0
    assert self_bleu(["yes", "yes", "yes"]) == 100.0


def test_empty_responses_share_nothing() -> None:
    assert self_bleu(["", "a b c", ""]) == 0.0


@pytest.mark.parametrize("responses", [[], ["one alone"], ["", " "]])
def test_self_bleu_without_a_pair_is_undefined(responses: list[str]) -> None:
    with pytest.raises(ValueError, match=r"two|empty"):
        self_bleu(responses)
