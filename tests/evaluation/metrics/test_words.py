"""Words of scripts with and without white space, and what counts them."""

from __future__ import annotations

import pytest

from nemo_gdpo.evaluation.metrics.diversity import distinct_n, distinct_openings, self_bleu
from nemo_gdpo.evaluation.metrics.novelty import short_answers_equal
from nemo_gdpo.evaluation.metrics.validity import check_response
from nemo_gdpo.evaluation.metrics.words import have_words, spaced, words

WEATHER = "今天天气很好。"
"""今天 | 天气 | 很好: today, weather, very good."""
TAI_THAM = "ᨲᩫ᩠ᩅᨾᩮᩬᩥᨦ"
"""A script without white space that ICU has no dictionary for."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The film,  it\nwas good.", ("The", "film,", "it", "was", "good.")),
        ("это хороший фильм", ("это", "хороший", "фильм")),
        ("영화가 좋았어요", ("영화가", "좋았어요")),
        (WEATHER, ("今天", "天气", "很好")),
        ("猫は窓で眠る", ("猫", "は", "窓", "で", "眠る")),
        ("ภาษาไทยสวยงาม", ("ภาษา", "ไทย", "สวยงาม")),
        ("I like 今天天气!", ("I", "like", "今天", "天气")),
        ("!!! ...", ("!!!", "...")),
        ("", ()),
    ],
)
def test_words(text: str, expected: tuple[str, ...]) -> None:
    assert words(text) == expected


def test_a_script_without_a_dictionary_has_no_known_words() -> None:
    assert words(TAI_THAM) is None
    assert not have_words(["good", TAI_THAM])
    assert check_response(TAI_THAM).repetition is None
    assert check_response(TAI_THAM).valid
    for measure in (lambda t: distinct_n(t, 1), self_bleu, distinct_openings):
        with pytest.raises(ValueError, match="words of a response are not known"):
            measure(["good", TAI_THAM])
    assert short_answers_equal(TAI_THAM, TAI_THAM) is None


def test_figures_of_text_without_white_space() -> None:
    """今天 | 天气 | 很好 beside 今天 | 天气 | 不好: 4 of 6 words are different ones."""
    pair = [WEATHER, "今天天气不好。"]
    assert distinct_n(pair, 1) == pytest.approx(4 / 6)
    assert distinct_n(pair, 2) == pytest.approx(3 / 4)
    assert distinct_openings(pair, words=2) == 1 / 2
    assert short_answers_equal(*pair) is True
    assert short_answers_equal(WEATHER, "我们去公园") is False
    # Of four tokens, the full stop among them, they share three.
    assert 30 < self_bleu(pair) < 80


def test_only_joined_words_are_spaced() -> None:
    assert spaced("a  b, c") == "a  b, c"
    assert spaced(WEATHER) == "今天 天气 很好 。"
