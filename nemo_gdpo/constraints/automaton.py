"""Whether any text matches an expression and meets other constraints as well: decided, not tried.

The expression becomes an automaton (Thompson 1968); each other constraint is a small deterministic
machine that reads the same characters. Some text meets all of them exactly if an accepting state of
their product can be reached, which a search over its states finds out.

Only the dialect that `expression.unshared` leaves is read: characters, sets, groups, | and
repetitions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import regex

from nemo_gdpo.constraints.expression import compiled
from nemo_gdpo.constraints.words import asks_boundary, folded, is_space, is_word

STATE_LIMIT, NODE_LIMIT = 2_000, 50_000
"""States of the expression, and of the product, up to which the question is answered."""
_TOKEN = regex.compile(
    r"(?P<atom>\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<open>\((?:\?:)?)|(?P<repeat>[*+?]|\{\d*(?:,\d*)?\})|(?P<other>.)",
    regex.DOTALL,
)
_LATIN = [chr(code) for code in (*range(9, 14), *range(32, 0x250))]
"""Characters that stand for all others, beside those of the expression and the words."""


class TooLargeError(Exception):
    """The expression has more states than are looked at."""


class Machine(Protocol):
    """A constraint that reads a text character by character."""

    start: Hashable

    def step(self, state: Hashable, character: str) -> Hashable | None:
        """The state after a character; None where no continuation can meet the constraint."""
        ...

    def accepts(self, state: Hashable) -> bool:
        """Whether a text that ends here meets it."""
        ...


@dataclass
class Automaton:
    """An expression's states: edges without a character, and edges that read an atom."""

    empty: list[list[int]] = field(default_factory=list)
    reads: list[list[tuple[str, int]]] = field(default_factory=list)
    first: int = 0
    last: int = 0

    def new(self) -> int:
        """Add a state.

        Raises:
            TooLargeError: there are too many.
        """
        if len(self.empty) >= STATE_LIMIT:
            raise TooLargeError
        self.empty.append([])
        self.reads.append([])
        return len(self.empty) - 1

    def closure(self, state: int) -> list[int]:
        """The states that are reached from one without reading."""
        seen, waiting = {state}, [state]
        while waiting:
            for following in self.empty[waiting.pop()]:
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return sorted(seen)


Tree = tuple[str, tuple["Tree", ...], tuple[int, int | None]] | str
"""An atom's text, or (`seq`, `alt` or `rep`, parts, bounds)."""
_NONE = (0, None)


class _Parser:
    """Recursive descent over the tokens of an expression that compiles."""

    def __init__(self, pattern: str) -> None:
        self._tokens = list(_TOKEN.finditer(pattern))
        self._at = 0

    def _next(self) -> str | None:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else None

    def alternatives(self) -> Tree:
        parts = [self.sequence()]
        while self._next() == "|":
            self._at += 1
            parts.append(self.sequence())
        return ("alt", tuple(parts), _NONE)

    def sequence(self) -> Tree:
        parts: list[Tree] = []
        while (text := self._next()) is not None and text not in ("|", ")"):
            token = self._tokens[self._at]
            self._at += 1
            bounds = None if token["repeat"] is None or not parts else _bounds(text)
            if bounds is not None:
                parts[-1] = ("rep", (parts[-1],), bounds)
            elif token["open"] is not None:
                parts.append(self.alternatives())
                self._at += 1  # the closing bracket
            elif token["atom"] is not None or text == ".":
                parts.append(text)
            else:
                parts.append(regex.escape(text))
        return ("seq", tuple(parts), _NONE)


def _bounds(text: str) -> tuple[int, int | None] | None:
    """(least, most) of a repetition; None for braces that are characters."""
    simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if text in simple:
        return simple[text]
    least, comma, most = text[1:-1].partition(",")
    if not least and not most:
        return None
    return int(least or 0), (int(most) if most else None) if comma else int(least)


def automaton_of(pattern: str) -> Automaton:
    """The automaton of an expression without the problems of `expression_problem`.

    Raises:
        TooLargeError: it has more than `STATE_LIMIT` states.
    """
    made = Automaton()
    made.first = made.new()
    made.last = _build(made, _Parser(pattern).alternatives(), made.first)
    return made


def _build(made: Automaton, tree: Tree, start: int) -> int:
    """Add a tree's states behind `start`; returns the state at its end."""
    if isinstance(tree, str):
        end = made.new()
        made.reads[start].append((tree, end))
        return end
    kind, parts, (least, most) = tree
    if kind == "seq":
        for part in parts:
            start = _build(made, part, start)
        return start
    end = made.new()
    if kind == "alt":
        for part in parts:
            fork = made.new()
            made.empty[start].append(fork)
            made.empty[_build(made, part, fork)].append(end)
        return end
    for _ in range(least):
        start = _build(made, parts[0], start)
    made.empty[start].append(end)
    if most is None:
        loop = made.new()
        made.empty[start].append(loop)
        done = _build(made, parts[0], loop)
        made.empty[done] += [loop, end]
    else:
        for _ in range(most - least):
            start = _build(made, parts[0], start)
            made.empty[start].append(end)
    return end


class Holds:
    """Whether a text holds one of some forms, as `words.WordSet` finds them."""

    def __init__(self, forms: Iterable[str], *, wanted: bool) -> None:
        self._forms = tuple(forms)
        self._wanted = wanted
        self.start: Hashable = (False, frozenset())

    def step(self, state: Hashable, character: str) -> Hashable | None:
        if state == "found":
            return state
        assert isinstance(state, tuple)
        inside, items = state
        for one in folded(character):
            items = self._read(inside, items, one)
            if items is None:
                return "found" if self._wanted else None
            inside = is_word(one)
        return inside, items

    def _read(
        self, inside: bool, items: frozenset[tuple[int, int]], one: str
    ) -> frozenset[tuple[int, int]] | None:
        """The begun forms after a character; None when one is found."""
        kept: set[tuple[int, int]] = set()
        fresh = {
            (number, 0)
            for number, form in enumerate(self._forms)
            if not (inside and asks_boundary(form[0]))
        }
        for number, place in items | fresh:
            form = self._forms[number]
            if place == len(form):
                if not is_word(one):
                    return None
                continue
            if place and form[place - 1] == " " and is_space(one):
                kept.add((number, place))
            if not (is_space(one) if form[place] == " " else form[place] == one):
                continue
            if place + 1 == len(form) and not asks_boundary(form[-1]):
                return None
            kept.add((number, place + 1))
        return frozenset(kept)

    def accepts(self, state: Hashable) -> bool:
        if state == "found":
            return self._wanted
        assert isinstance(state, tuple)
        ended = any(place == len(self._forms[number]) for number, place in state[1])
        return ended == self._wanted


class Several:
    """At least so many of several machines."""

    def __init__(self, machines: Sequence[Machine], least: int) -> None:
        self._machines, self._least = machines, least
        self.start: Hashable = tuple(machine.start for machine in machines)

    def step(self, state: Hashable, character: str) -> Hashable | None:
        assert isinstance(state, tuple)
        return tuple(m.step(s, character) for m, s in zip(self._machines, state, strict=True))

    def accepts(self, state: Hashable) -> bool:
        assert isinstance(state, tuple)
        held = (m.accepts(s) for m, s in zip(self._machines, state, strict=True))
        return sum(held) >= self._least


class Length:
    """Bounds on the number of characters or words."""

    def __init__(self, least: int | None, most: int | None, *, words: bool) -> None:
        self._least, self._most, self._words = least or 0, most, words
        self.start: Hashable = (0, False)

    def step(self, state: Hashable, character: str) -> Hashable | None:
        assert isinstance(state, tuple)
        count, inside = state
        if not self._words:
            count += 1
        elif is_space(character):
            inside = False
        elif is_word(character) and not inside:
            count, inside = count + 1, True
        if self._most is not None and count > self._most:
            return None
        return (count if self._most is not None else min(count, self._least)), inside

    def accepts(self, state: Hashable) -> bool:
        assert isinstance(state, tuple)
        return bool(state[0] >= self._least)


def can_match(pattern: str, machines: Sequence[Machine], words: Iterable[str]) -> bool | None:
    """Whether some text matches the expression and every machine accepts it.

    Args:
        pattern: without the problems of `expression_problem`.
        machines: of the other constraints.
        words: the forms that the machines look for; their characters are told apart.

    Returns:
        None where the product is too large to say.
    """
    try:
        made = automaton_of(pattern)
    except TooLargeError:
        return None
    sets = _alphabet(made, pattern, "".join(words))
    first = tuple(machine.start for machine in machines)
    waiting = [(state, first) for state in made.closure(made.first)]
    seen = set(waiting)
    while waiting:
        state, others = waiting.pop()
        if state == made.last and all(m.accepts(s) for m, s in zip(machines, others, strict=True)):
            return True
        for atom, target in made.reads[state]:
            for character in sets[atom]:
                moved = [m.step(s, character) for m, s in zip(machines, others, strict=True)]
                if None in moved:
                    continue
                for following in made.closure(target):
                    node = (following, tuple(moved))
                    if node not in seen:
                        seen.add(node)
                        waiting.append(node)
        if len(seen) > NODE_LIMIT:
            return None
    return False


def _alphabet(made: Automaton, pattern: str, words: str) -> dict[str, list[str]]:
    """Atom -> characters it reads: one of each kind that any atom or machine tells apart."""
    atoms = sorted({atom for edges in made.reads for atom, _ in edges})
    tests = {atom: compiled(atom) for atom in atoms}
    special = {*words, *words.upper(), *words.title()}
    kinds: dict[tuple[object, ...], str] = {}
    for character in dict.fromkeys([*special, *pattern, *_LATIN]):
        read = tuple(tests[atom].fullmatch(character) is not None for atom in atoms)
        own = folded(character)
        told = tuple(one if one in words else (is_word(one), is_space(one)) for one in own)
        kinds.setdefault((read, told), character)
    return {
        atom: [character for (read, _), character in kinds.items() if read[place]]  # type: ignore[index]
        for place, atom in enumerate(atoms)
    }
