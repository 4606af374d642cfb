"""Answers against constraints: a verdict each, and its log-reward."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from nemo_gdpo.config.constraints import ConstraintsConfig
from nemo_gdpo.constraints.expression import matches
from nemo_gdpo.constraints.grammar import GrammarCheck, read_grammar
from nemo_gdpo.constraints.words import WordSet, forms_of, word_count

Check = Callable[[str], bool]
Kind = Literal["regex", "choice", "grammar"]
SHAPES: tuple[Kind, ...] = ("regex", "choice", "grammar")
"""Keys that vLLM can enforce; an answer can be held to one of them."""


@dataclass(frozen=True)
class Structure:
    """What vLLM is to hold an answer to; plain data that any process can carry."""

    kind: Kind
    """Name in vLLM's structured outputs."""
    value: str | tuple[str, ...]
    """The expression, the grammar's text, or the choices."""

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Structure:
        """The inverse of `dataclasses.asdict`, also after a way through JSON or Arrow."""
        value = plain["value"]
        return cls(plain["kind"], value if isinstance(value, str) else tuple(value))

    def to_argument(self) -> dict[str, Any]:
        """As vLLM takes it."""
        return {self.kind: self.value if isinstance(self.value, str) else list(self.value)}


@dataclass(frozen=True)
class Verdict:
    """What became of one answer."""

    broken: tuple[str, ...] = ()
    """Names of the constraints that it breaks, in their order."""

    @property
    def met(self) -> bool:
        return not self.broken


def log_reward(verdict: Verdict, floor: float) -> float:
    """Log-reward of the constraints, in nats: 0 where all are met, `floor` otherwise.

    The reward of an answer that breaks one is 0, whose logarithm no squared loss can take.

    Args:
        verdict: of the answer.
        floor: `constraints.log_reward_floor`; finite and below 0.
    """
    return 0.0 if verdict.met else floor


class Constraints:
    """The constraints of a run."""

    def __init__(self, config: ConstraintsConfig) -> None:
        """Compile them.

        Args:
            config: without the problems that `constraint_problems` finds.

        Raises:
            UserError: the grammar cannot be read, or not checked here.
        """
        self._config = config
        self._grammar = None if config.grammar is None else read_grammar(config.grammar)
        self._checks: dict[str, Check] = {
            **_concepts(config),
            **{f"forbidden.{word}": _lacks(word) for word in config.forbidden},
            **_lengths(config),
        }
        if config.regex is not None:
            self._checks["regex"] = partial(matches, config.regex)
        if config.choice:
            self._checks["choice"] = frozenset(config.choice).__contains__
        if self._grammar is not None:
            self._checks["grammar"] = GrammarCheck(self._grammar).accepts

    @property
    def names(self) -> tuple[str, ...]:
        """Each constraint's name; `concepts.genre`, `forbidden.dull`, `max_words`, ..."""
        return tuple(self._checks)

    def check(self, text: str) -> Verdict:
        """Which constraints an answer breaks.

        Args:
            text: the whole answer, without its end token.

        Raises:
            UserError: the expression takes too long on it.
        """
        return Verdict(tuple(name for name, holds in self._checks.items() if not holds(text)))

    @property
    def structure(self) -> Structure | None:
        """What vLLM is to enforce; None where there is nothing, or `enforce` is false."""
        config = self._config
        if not has_structure(config):
            return None
        if config.regex is not None:
            return Structure("regex", config.regex)
        if config.choice:
            return Structure("choice", config.choice)
        return None if self._grammar is None else Structure("grammar", self._grammar)

    def identity(self) -> dict[str, Any]:
        """What decides samples and verdicts: the keys that are set, the grammar by its hash."""
        names = ConstraintsConfig.model_fields
        plain = {name: getattr(self._config, name) for name in names}
        unset = ConstraintsConfig()
        found = {name: v for name, v in plain.items() if v != getattr(unset, name)}
        if self._grammar is not None:
            found["grammar"] = hashlib.sha256(self._grammar.encode()).hexdigest()
        return found


def constraints_of(config: ConstraintsConfig) -> Constraints | None:
    """The constraints of a section; None where it sets none.

    Raises:
        UserError: see `Constraints`.
    """
    return Constraints(config) if is_constrained(config) else None


def is_constrained(config: ConstraintsConfig) -> bool:
    """Whether a section asks anything of an answer."""
    bounds = (config.min_words, config.max_words, config.min_characters, config.max_characters)
    shapes = (config.regex, config.grammar)
    lists = (config.concepts, config.forbidden, config.choice)
    return any(value is not None for value in (*bounds, *shapes)) or any(lists)


def has_structure(config: ConstraintsConfig) -> bool:
    """Whether there is something that vLLM is to enforce."""
    return config.enforce and any(getattr(config, name) for name in SHAPES)


def concept_sets(config: ConstraintsConfig) -> dict[str, WordSet]:
    """Name of a concept -> the forms of its words."""
    return {
        name: WordSet(forms_of(aliases, plurals=config.plurals))
        for name, aliases in config.concepts.items()
    }


def _concepts(config: ConstraintsConfig) -> dict[str, Check]:
    sets, least = concept_sets(config), config.least_concepts
    if least is None or least >= len(sets):
        return {f"concepts.{name}": words.found_in for name, words in sets.items()}

    def holds(text: str) -> bool:
        return sum(words.found_in(text) for words in sets.values()) >= least

    return {"concepts": holds}


def _lacks(word: str) -> Check:
    words = WordSet(forms_of((word,), plurals=False))
    return lambda text: not words.found_in(text)


def _lengths(config: ConstraintsConfig) -> dict[str, Check]:
    found: dict[str, Check] = {}
    bounds = (
        ("min_words", word_count, config.min_words, 1),
        ("max_words", word_count, config.max_words, -1),
        ("min_characters", len, config.min_characters, 1),
        ("max_characters", len, config.max_characters, -1),
    )
    for name, measure, bound, sign in bounds:
        if bound is not None:
            found[name] = partial(_within, measure, bound, sign)
    return found


def _within(measure: Callable[[str], int], bound: int, sign: int, text: str) -> bool:
    """Whether a measure is at least (sign 1) or at most (sign -1) its bound."""
    return sign * (measure(text) - bound) >= 0
