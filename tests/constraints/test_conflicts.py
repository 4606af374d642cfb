"""Contradictions, found before anything is sampled; and what is no contradiction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.constraints import ConstraintsConfig
from nemo_gdpo.constraints import Constraints, constraint_problems
from nemo_gdpo.constraints.automaton import can_match
from nemo_gdpo.constraints.expression import expression_problem

GENRE = {"genre": ["horror", "science fiction"]}


def told(**keys: Any) -> list[str]:
    return [str(problem) for problem in constraint_problems(ConstraintsConfig(**keys))]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"min_words": 5, "max_words": 4}, "constraints.min_words: 5 is above"),
        ({"min_characters": 5, "max_characters": 4}, "constraints.min_characters: 5 is above"),
        ({"min_words": 5, "max_characters": 8}, "constraints.min_words: 5 words take 9 characters"),
        ({"concepts": GENRE, "max_characters": 5},
         "constraints.max_characters: 5 leaves no room for a concept, which takes 6 characters"),
        ({"concepts": {"g": "a b c"}, "max_words": 2},
         "constraints.max_words: 2 leaves no room for a concept, which takes 3 words"),
        ({"concepts": GENRE, "forbidden": ["HORROR", "horrors", "fiction", "fictions"],
          "plurals": False},
         "constraints.forbidden: every word of concept genre is forbidden (HORROR, fiction)"),
        ({"concepts": GENRE, "least_concepts": 2}, "constraints.least_concepts: 2 of 1 concepts"),
        ({"least_concepts": 1, "max_words": 2}, "constraints.least_concepts: is set without"),
        ({"plurals": False, "max_words": 2}, "constraints.plurals: is set without concepts"),
        ({"enforce": False, "max_words": 2}, "constraints.enforce: is false, and there is no"),
        ({"regex": "a", "choice": ["a"]}, "constraints.choice: is set beside constraints.regex"),
        ({"forbidden": ["Dull", "dull"]}, "constraints.forbidden: names 'Dull' and 'dull'"),
        ({"choice": ["a", "a"]}, "constraints.choice: has 'a' twice"),
        ({"choice": ["so dull", "dull"], "forbidden": ["dull"]},
         "constraints.choice: none of the texts meets the other constraints ('so dull' breaks"),
        ({"grammar": "nowhere.gbnf"}, "constraints.grammar: nowhere.gbnf is not a file"),
        ({"regex": "(a"}, "constraints.regex: '(a' is no regular expression (missing )"),
        ({"regex": r"\bfilm"}, r"constraints.regex: holds \b (a word boundary)"),
        ({"regex": "(?=a)."}, "constraints.regex: holds (?=a (a group that is more than"),
        ({"regex": r"(a)\1"}, r"constraints.regex: holds \1 (a reference to a group)"),
        ({"regex": "^a$"}, "constraints.regex: holds ^ (an anchor; the whole answer"),
        ({"regex": "a*?"}, "constraints.regex: holds *? (a lazy or possessive repetition"),
        ({"regex": "a{,3}"}, "constraints.regex: holds { (no repetition"),
        ({"regex": "[[a]]"}, "constraints.regex: holds [[a] (a set inside a set"),
        ({"regex": r"\p{L}+"}, r"constraints.regex: holds \p (a Unicode property)"),
        ({"regex": "[0-9]+ stars", "concepts": GENRE},
         "constraints.concepts.genre: no text that constraints.regex matches meets it"),
        ({"regex": "horrorshow", "concepts": GENRE},
         "constraints.concepts.genre: no text that constraints.regex matches meets it"),
        ({"regex": "Verdict: (good|bad)", "forbidden": ["verdict"]},
         "constraints.forbidden (verdict): no text that constraints.regex matches meets it"),
        ({"regex": "(ab){5,9}", "max_characters": 9},
         "constraints.max_characters: no text that constraints.regex matches meets it"),
        ({"regex": "[a-z]{1,9}( [a-z]{1,9}){0,2}", "min_words": 4},
         "constraints.min_words: no text that constraints.regex matches meets it"),
        ({"regex": "a dull film|a film", "forbidden": ["dull"], "min_words": 3},
         "constraints.regex: no text that it matches meets forbidden (dull), min_words together"),
    ],
)  # fmt: skip
def test_one_line(keys: dict[str, Any], line: str) -> None:
    (only,) = told(**keys)
    assert only.startswith(line), only


@pytest.mark.parametrize(
    "keys",
    [
        {"concepts": GENRE, "forbidden": ["horror"]},  # another word, and the plural, are left
        {"concepts": GENRE, "max_characters": 6, "max_words": 1},
        {"concepts": {"a": "ant", "b": "bee"}, "least_concepts": 1, "forbidden": ["ant", "ants"]},
        {"min_words": 5, "max_characters": 9},
        {"regex": "[A-Z][^.]+ HORROR .*", "concepts": GENRE},
        {"regex": ".{0,200}", "concepts": GENRE, "forbidden": ["dull"], "min_words": 3},
        {"regex": r"[a-z ]+\.", "concepts": GENRE, "max_words": 2},
        {"regex": "STRASSE", "concepts": {"s": "straße"}},
        {"regex": r"\{x\}[\[\]\-a]?"},
        {"choice": ["dull", "bright"], "forbidden": ["dull"]},
    ],
)
def test_no_contradiction(keys: dict[str, Any]) -> None:
    assert told(**keys) == []


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(x+x+)+y", "([a-z]+)*1"])
def test_an_expression_that_takes_for_ever_is_refused(pattern: str) -> None:
    problem = expression_problem(pattern)
    # The library itself may be clever about it; then it has to be quick.
    if problem is None:
        assert Constraints(ConstraintsConfig(regex=pattern)).check("a" * 5000).broken == ("regex",)
    else:
        assert "takes more than 0.5 s" in problem[0]


def test_what_is_too_large_is_not_decided() -> None:
    assert can_match("(a{1,90}){1,90}", [], ()) is None


def test_presets_are_possible() -> None:
    from nemo_gdpo.config.composition import compose, config_dir
    from nemo_gdpo.config.generation import GENERATE

    files = sorted((config_dir() / "constraints").glob("*.yaml"))
    assert [Path(file).stem for file in files] == ["film_review", "verdict_line"]
    for file in files:
        config = GENERATE.parse(compose([f"constraints={file.stem}"], GENERATE).plain)
        assert constraint_problems(config.constraints) == [], file
    review = Constraints(
        GENERATE.parse(compose(["constraints=verdict_line"], GENERATE).plain).constraints
    )
    assert review.check("A slow but honest film about work. Verdict: 4 of 5 stars.").met
    assert not review.check("A slow but honest film. Verdict: 6 of 5 stars.").met
