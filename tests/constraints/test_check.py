"""Every kind of constraint by hand: what meets it, what breaks it, and what is counted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.constraints import ConstraintsConfig, RewardedConstraintsConfig
from nemo_gdpo.constraints import (
    Constraints,
    Counts,
    Structure,
    Verdict,
    constraints_of,
    has_checker,
    log_reward,
    refuse_never_met,
)
from nemo_gdpo.errors import UserError


def broken(text: str, **keys: Any) -> tuple[str, ...]:
    return Constraints(ConstraintsConfig(**keys)).check(text).broken


GENRE = {"genre": ["horror", "comedy", "science fiction"]}


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("A HORROR film", True),
        ("two horrors and", True),  # plural
        ("two comedies", True),  # y to ies
        ("science\n fiction, again", True),  # a phrase over white space
        ("horror-comedy", True),  # a hyphen is a boundary
        ("a horror's end", True),
        ("horrorshow", False),
        ("the superhorror", False),
        ("science of fiction", False),
        ("comedys", False),
        ("", False),
    ],
)
def test_a_concept_is_a_whole_word(text: str, met: bool) -> None:
    assert broken(text, concepts=GENRE) == (() if met else ("concepts.genre",))


def test_plurals_can_be_left_out() -> None:
    assert broken("horrors", concepts=GENRE, plurals=False) == ("concepts.genre",)


def test_so_many_of_the_concepts() -> None:
    concepts = {"a": ["ant"], "b": ["bee"], "c": ["cow"]}
    assert broken("an ant", concepts=concepts) == ("concepts.b", "concepts.c")
    assert broken("an ant", concepts=concepts, least_concepts=2) == ("concepts",)
    assert broken("an ant, a cow", concepts=concepts, least_concepts=2) == ()


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("straße", "Die STRASSE", True),  # full case folding
        ("STRASSE", "die Straße", True),
        ("café", "cafe\u0301s", False),  # decomposed: the accent and the s belong to the word
        ("café", "a cafe\u0301.", True),
        ("cafe", "a cafe\u0301", False),
        ("ΣΑΣ", "σας", True),  # final sigma
        ("恐怖", "一部恐怖片", True),  # a script without spaces
        ("film", "映画film映画", False),  # Latin letters beside Han are one word
        ("😀", "great😀", True),  # beside no word there is no boundary
        ("c++", "in C++, say", True),
        ("नमस्ते", "नमस्तेजी", False),  # a vowel sign is part of a word
        ("dull", "dull_ness", False),
    ],
)
def test_forbidden_words_in_unicode(word: str, text: str, found: bool) -> None:
    assert broken(text, forbidden=[word]) == ((f"forbidden.{word}",) if found else ())


def test_a_forbidden_word_is_as_written() -> None:
    assert broken("horrors", forbidden=["horror"]) == ()


def test_lengths() -> None:
    text = "Well - it's a film."  # 4 words, for a dash is none; 19 characters
    assert broken(text, min_words=4, max_words=4, min_characters=19, max_characters=19) == ()
    assert broken(text, min_words=5, max_words=3, min_characters=20, max_characters=18) == (
        "min_words", "max_words", "min_characters", "max_characters",
    )  # fmt: skip


def test_the_whole_answer_matches() -> None:
    pattern = r"(yes|no), \d{1,2}\.?"
    for text, met in {"yes, 12": True, "no, 1.": True, "yes, 123": False, "x yes, 1": False,
                      "yes, 1\n": False, "yes, ٣": False}.items():  # fmt: skip
        assert broken(text, regex=pattern) == (() if met else ("regex",)), text
    assert broken("a\nb", regex="a.b") == ()


def test_matching_ends_in_time() -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=r"^constraints.regex: .* took more than 2 s on an answer"):
        broken("a" * 60 + "b", regex="(a|aa|a(a)*)+c")
    assert time.process_time() - began < 20


def test_a_choice_is_exact() -> None:
    assert broken("yes", choice=["yes", "no"]) == ()
    assert broken("yes ", choice=["yes", "no"]) == ("choice",)


@pytest.mark.skipif(has_checker(), reason="xgrammar is installed here")
def test_a_grammar_needs_its_checker(tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= "a"')
    with pytest.raises(UserError, match="checked with xgrammar, which this environment does not"):
        broken("a", grammar=str(tmp_path / "g.gbnf"))


@pytest.mark.skipif(not has_checker(), reason="xgrammar is in the generation environment")
def test_a_grammar_is_the_whole_answer(tmp_path: Path) -> None:
    path = tmp_path / "g.gbnf"
    path.write_text('root ::= "a" b+\nb ::= "b" | "é"\n')
    for text, met in {"abé": True, "a": False, "abc": False, "": False}.items():
        assert broken(text, grammar=str(path)) == (() if met else ("grammar",)), text


def test_nothing_asked_is_no_constraints() -> None:
    assert constraints_of(ConstraintsConfig()) is None
    assert constraints_of(ConstraintsConfig(forbidden=("x",))) is not None


def test_what_vllm_enforces() -> None:
    made = Constraints(ConstraintsConfig(choice=("a", "b"), max_words=3))
    assert made.structure == Structure("choice", ("a", "b"))
    assert made.structure.to_argument() == {"choice": ["a", "b"]}
    assert Constraints(ConstraintsConfig(choice=("a",), enforce=False)).structure is None
    assert Constraints(ConstraintsConfig(max_words=3)).structure is None


def test_identity_names_what_is_set() -> None:
    made = Constraints(ConstraintsConfig(concepts={"g": ("x",)}, max_words=3, enforce=True))
    assert made.identity() == {"concepts": {"g": ("x",)}, "max_words": 3}


def test_log_reward() -> None:
    floor = RewardedConstraintsConfig().log_reward_floor
    assert floor == -10.0
    assert log_reward(Verdict(), floor) == 0.0
    assert log_reward(Verdict(("regex",)), floor) == floor
    assert log_reward(Verdict(("regex", "max_words")), floor) == floor  # one or many
    with pytest.raises(ValueError, match="finite"):
        RewardedConstraintsConfig(log_reward_floor=float("-inf"))


def test_counts_and_the_first_round() -> None:
    counts = Counts(["a", "b"])
    assert counts.never_met() == ()
    refuse_never_met(counts)  # there is no answer yet
    for names in (["a"], ["a", "b"]):
        counts.add(names)
    assert counts.lines() == [
        "2 of 2 samples broke a", "1 of 2 samples broke b", "0 of 2 samples met all constraints",
    ]  # fmt: skip
    assert counts.never_met() == ("a",)
    with pytest.raises(
        UserError, match=r"^constraints.a: none of the 2 samples of the first round"
    ):
        refuse_never_met(counts)
    counts.add(["b"])
    with pytest.raises(UserError, match=r"^constraints: none of the 3 samples .* of a, b together"):
        refuse_never_met(counts)
    counts.add([])
    refuse_never_met(counts)
    with pytest.raises(KeyError):
        counts.add(["c"])
