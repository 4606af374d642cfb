"""Validity and repetition of single responses, and of many."""

from __future__ import annotations

import random

import pytest

from nemo_gdpo.evaluation.metrics.validity import check_response, high_type_token_ratio

from ..written_runs import GOOD

SENTENCE = " ".join(f"w{n}" for n in range(24)) + " "
PARAGRAPH = " ".join(f"p{n}" for n in range(120)) + " "


@pytest.mark.parametrize(
    "text",
    [
        *GOOD,
        "No.",
        "это очень хороший фильм, и я его люблю",
        "日本語のテキストはこうです。とても面白い",
        "def f(x):\n    return x + 1",
        "# Title\n\n- one\n- two\n\n---------------------------------",
        "very very very good",
        "😀 good",
        "|a|b|\n|---|---|---|---|---|---|---|---|---|---|---|---|\n|1|2|",
        "Name: ____________________",
        "Chapter one " + "." * 60 + " 7",
        "No...",
        "😂😂😂😂",
        "今天天气很好，我们去公园散步吧。",
        " ".join(f"word{n}" for n in range(120)) + " " + " ".join(f"word{n}" for n in range(20)),
    ],
)
def test_text_is_valid(text: str) -> None:
    assert check_response(text).valid


def test_empty() -> None:
    for text in ("", " \n\t", "\u200b\u00ad"):
        check = check_response(text)
        assert check.empty
        assert not check.valid
        assert check.repetition is None


def test_unprintable() -> None:
    """2 of 20 characters are half a byte sequence and a control character."""
    check = check_response("abcdefghij klmnopq�\x00")
    assert check.printable == pytest.approx(18 / 20)
    assert check.ascii == pytest.approx(19 / 20)
    assert check.unprintable
    assert not check.valid
    assert check_response("�" * 5).empty


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("good " * 8, True),
        ("good " * 7, False),  # seven words are not eight
        ("It is so. " * 4, True),  # 3 words, 4 times
        ("It is so. " * 3, False),
        ("I liked it. " + "a b c d e f g " * 4, True),
        ("a b c d e f g " * 3 + "a b c d e f x", False),
        ("haha" * 10, True),  # without white space
        ("na na na na hey hey hey goodbye", False),
        ("!" * 64, True),
        ("!!!!", True),  # nothing else
        ("Good film " + "!" * 12, True),
        ("Good film!!!", False),
        ("?!" * 12, True),
        ("Good. " + "-" * 161, True),  # longer than any rule
        ("Good.\n" + "-" * 79, False),
        ("Good." + "\n" * 200 + "x", True),
        ("。" * 20, True),
        ("💥" * 12, True),
        (SENTENCE * 3, True),  # 24 words, three times
        (SENTENCE * 2, False),
        (PARAGRAPH * 2, True),  # 120 words, twice
        (PARAGRAPH + "But then. " + PARAGRAPH, False),
        ("".join(f"{n}. {SENTENCE}" for n in range(8)), True),  # numbered
        ("今天天气很好。" * 4, True),
        ("ภาษาไทยสวยงามมากจริงๆ" * 6, True),
    ],
)
def test_loops(text: str, loop: bool) -> None:
    assert check_response(text).loop is loop
    assert check_response(text).valid is not loop


def test_repetition_by_hand() -> None:
    """abcd bcda cdab dabc abcd: 5 of which 4 differ."""
    assert check_response("a b c d a b c d").repetition == pytest.approx(1 / 5)
    assert check_response("a b c d").repetition == 0.0
    assert check_response("a b c").repetition is None


# --- many responses -------------------------------------------------------------------------


def noise(words: int, seed: int = 0) -> str:
    """Words that no language has, each drawn from a great number."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(words))


def test_noise_in_words_is_seen_in_many_responses_only() -> None:
    responses = [noise(50, seed) for seed in range(20)]
    assert all(check_response(text).valid for text in responses)
    share = high_type_token_ratio(responses)
    assert share is not None
    assert share > 0.9
    assert high_type_token_ratio(responses[:9]) is None  # 450 words are too few to say


def test_language_is_not_strange() -> None:
    assert high_type_token_ratio(GOOD * 30) is None


def test_text_without_white_space_is_not_judged() -> None:
    draw = random.Random(0)
    cjk = ["".join(chr(draw.randint(0x4E00, 0x9000)) for _ in range(30)) for _ in range(600)]
    assert high_type_token_ratio(cjk) is None
