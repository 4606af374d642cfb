"""Constraints that no answer could meet, or that mean nothing: found before anything is sampled.

Exact for words, lengths, choices and (up to a size) expressions; what a grammar allows beside the
others shows in the first round, where `refuse_never_met` stops a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemo_gdpo.config.constraints import ConstraintsConfig
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.constraints.automaton import Holds, Length, Machine, Several, can_match
from nemo_gdpo.constraints.check import SHAPES, Constraints, concept_sets
from nemo_gdpo.constraints.expression import expression_problem
from nemo_gdpo.constraints.words import WordSet, folded, forms_of, word_count

SECTION = "constraints"


def constraint_problems(config: ConstraintsConfig) -> list[Problem]:
    """Everything wrong with a section, as far as it can be told without a model."""
    unread = list(_unread(config))
    single = [*unread, *_words(config), *_bounds(config), *_files(config)]
    if config.regex is not None:
        told = expression_problem(config.regex)
        if told is not None:
            single.append(_problem("regex", *told))
    if single:
        return single
    return [*_against_regex(config), *_against_choice(config)]


def _problem(key: str, reason: str, remedy: str) -> Problem:
    return Problem(f"{SECTION}.{key}", reason, remedy)


def _unread(config: ConstraintsConfig) -> Iterator[Problem]:
    """Keys that nothing would read, and shapes that exclude each other."""
    given = [name for name in SHAPES if getattr(config, name)]
    if len(given) > 1:
        reason = f"is set beside {SECTION}.{given[0]}, and vLLM holds an answer to one of them"
        yield _problem(given[1], reason, "write both as one grammar or one expression")
    if not config.enforce and not given:
        reason = "is false, and there is no regex, choice or grammar to enforce"
        yield _problem("enforce", reason, "remove it")
    if config.least_concepts is not None and not config.concepts:
        yield _problem("least_concepts", "is set without concepts", "name them, or remove it")
    elif config.least_concepts is not None and config.least_concepts > len(config.concepts):
        reason = f"{config.least_concepts} of {len(config.concepts)} concepts cannot be held"
        yield _problem("least_concepts", reason, f"lower it to {len(config.concepts)}")
    if not config.plurals and not config.concepts:
        yield _problem("plurals", "is set without concepts", "name them, or remove it")


def _words(config: ConstraintsConfig) -> Iterator[Problem]:
    """Forbidden words named twice, and concepts of which each word is forbidden."""
    known: dict[str, str] = {}
    for word in config.forbidden:
        (form,) = forms_of((word,), plurals=False)
        if form in known:
            reason = f"names {known[form]!r} and {word!r}, which are the same word"
            yield _problem("forbidden", reason, "name it once")
        known[form] = word
    for number, choice in enumerate(config.choice):
        if choice in config.choice[:number]:
            yield _problem("choice", f"has {choice!r} twice", "name each text once")
    if not known:
        return
    forbidden = WordSet(known)
    lost = {
        name: [word for form, word in known.items() if _is_in(form, words)]
        for name, words in concept_sets(config).items()
        if all(forbidden.found_in(form) for form in words.forms)
    }
    least = config.least_concepts or len(config.concepts)
    if len(config.concepts) - len(lost) < least:
        name, words_lost = next(iter(lost.items()))
        reason = (
            f"every word of concept {name} is forbidden ({', '.join(words_lost)}), and an answer "
            f"has to hold {least} of {len(config.concepts)} concepts"
        )
        yield _problem("forbidden", reason, "take the words out of one of them")


def _is_in(form: str, words: WordSet) -> bool:
    return any(WordSet((form,)).found_in(one) for one in words.forms)


def _bounds(config: ConstraintsConfig) -> Iterator[Problem]:
    for unit in ("words", "characters"):
        least, most = getattr(config, f"min_{unit}"), getattr(config, f"max_{unit}")
        if least is not None and most is not None and least > most:
            reason = f"{least} is above {SECTION}.max_{unit}={most}"
            yield _problem(f"min_{unit}", reason, "lower it, or raise the other")
    words, room = config.min_words, config.max_characters
    if words is not None and room is not None and 2 * words - 1 > room:
        reason = f"{words} words take {2 * words - 1} characters at least, and {SECTION}.\
max_characters={room}"
        yield _problem("min_words", reason, "lower it, or raise the other")
    least = config.least_concepts or len(config.concepts)
    for unit, measure in (("characters", len), ("words", word_count)):
        most = getattr(config, f"max_{unit}")
        needs = sorted(min(map(measure, s.forms)) for s in concept_sets(config).values())
        if most is not None and needs and needs[least - 1] > most:
            reason = f"{most} leaves no room for a concept, which takes {needs[least - 1]} {unit}"
            yield _problem(f"max_{unit}", reason, "raise it, or add a shorter word")


def _files(config: ConstraintsConfig) -> Iterator[Problem]:
    if config.grammar is not None and not Path(config.grammar).is_file():
        yield _problem("grammar", f"{config.grammar} is not a file", "correct the path")


def _machines(config: ConstraintsConfig) -> dict[str, Machine]:
    """Key -> a machine of the constraint."""
    sets = concept_sets(config)
    found: dict[str, Machine] = {}
    if config.least_concepts is None:
        for name, words in sets.items():
            found[f"concepts.{name}"] = Holds(words.forms, wanted=True)
    else:
        each = [Holds(words.forms, wanted=True) for words in sets.values()]
        found["concepts"] = Several(each, config.least_concepts)
    for word in config.forbidden:
        found[f"forbidden ({word})"] = Holds(forms_of((word,), plurals=False), wanted=False)
    for unit in ("words", "characters"):
        least, most = getattr(config, f"min_{unit}"), getattr(config, f"max_{unit}")
        for end, bounds in (("min", (least, None)), ("max", (None, most))):
            if bounds != (None, None):
                found[f"{end}_{unit}"] = Length(*bounds, words=unit == "words")
    return found


def _against_regex(config: ConstraintsConfig) -> Iterator[Problem]:
    if config.regex is None:
        return
    machines = _machines(config)
    forms = [form for words in concept_sets(config).values() for form in words.forms]
    forms += map(folded, config.forbidden)
    remedy = "change one of them"
    if can_match(config.regex, [], ()) is False:
        yield _problem("regex", f"{config.regex!r} matches no text", "correct it")
        return
    alone = [k for k, one in machines.items() if can_match(config.regex, [one], forms) is False]
    for key in alone:
        yield _problem(key, f"no text that {SECTION}.regex matches meets it", remedy)
    if not alone and can_match(config.regex, list(machines.values()), forms) is False:
        reason = f"no text that it matches meets {', '.join(machines)} together"
        yield _problem("regex", reason, remedy)


def _against_choice(config: ConstraintsConfig) -> Iterator[Problem]:
    if not config.choice:
        return
    others = Constraints(config.model_copy(update={"choice": ()}))
    verdicts = {choice: others.check(choice) for choice in config.choice}
    if any(verdict.met for verdict in verdicts.values()):
        return
    choice, verdict = next(iter(verdicts.items()))
    reason = (
        f"none of the texts meets the other constraints ({choice!r} breaks {verdict.broken[0]})"
    )
    yield _problem("choice", reason, "change one of them")
