"""The `constraints` section: what an answer has to be like, as a closed set of kinds.

`nemo_gdpo.constraints` finds contradictions between them, checks answers and counts. Every verb
that samples or scores reads the same section.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from nemo_gdpo.config.base import PathText, Section, Text, Words

Least = Annotated[int, Field(ge=1)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _as_dict(value: Any) -> Any:
    return {} if value is None else value


def _visible(text: str) -> str:
    if not text.strip():
        raise ValueError("it is white space only")
    return text


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("give one word at least")
    return value


Word = Annotated[Words, AfterValidator(_visible)]
_MANY = (Field(strict=False), BeforeValidator(_as_list))
WordList = Annotated[tuple[Word, ...], *_MANY]
Aliases = Annotated[tuple[Word, ...], *_MANY, AfterValidator(_not_empty)]
Choices = Annotated[tuple[Words, ...], *_MANY]
Concepts = Annotated[dict[Text, Aliases], BeforeValidator(_as_dict)]


class ConstraintsConfig(Section):
    """What an answer's text has to be like; without any key nothing is asked of it."""

    concepts: Concepts = Field(default=None, validate_default=True)
    """Name of a concept -> words or phrases, one of which an answer has to hold:
    {genre: [horror, comedy]}. Whole words, upper and lower case alike."""
    least_concepts: Least | None = None
    """How many of the concepts an answer has to hold; null is all of them."""
    plurals: bool = True
    """Take a concept's words in the regular English plural as well (horrors, comedies)."""
    forbidden: WordList = ()
    """Words or phrases that an answer must not hold. Whole words, upper and lower case alike."""
    min_words: Least | None = None
    """Least number of words: pieces between white space that hold a letter or a digit."""
    max_words: Least | None = None
    """Greatest number of words."""
    min_characters: Least | None = None
    """Least number of characters (code points), white space included."""
    max_characters: Least | None = None
    """Greatest number of characters."""
    regex: Words | None = None
    """Regular expression that the whole answer has to match, as vLLM reads it: characters, sets,
    groups, | and repetitions; a dot is any character, letters and digits of classes are ASCII."""
    choice: Choices = ()
    """Texts, one of which the answer has to be."""
    grammar: PathText | None = None
    """File with a grammar in GBNF (the EBNF of vLLM's structured outputs) whose `root` the whole
    answer has to be."""
    enforce: bool = True
    """Let vLLM sample only what regex, choice or grammar allow; false samples freely and checks."""


class RewardedConstraintsConfig(ConstraintsConfig):
    """The same where answers are trained on."""

    log_reward_floor: Annotated[float, Field(lt=0, allow_inf_nan=False)] = -10.0
    """Log-reward, in nats, of an answer that breaks a constraint, however many; one that meets all
    has 0. The reward of such an answer is 0, and its logarithm no number that a squared loss could
    take, so this stands for it."""
