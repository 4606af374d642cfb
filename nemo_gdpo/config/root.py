"""A root configuration: its schema, its groups of presets, and the way from a mapping to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from nemo_gdpo.config.base import Section, fields_of, section_of
from nemo_gdpo.config.problem import ConflictError, Problem, raise_problems
from nemo_gdpo.config.suggest import alias, closest, hint

S = TypeVar("S", bound=Section)
_WIDEST = 200
"""Characters of a value that a message repeats."""


@dataclass(frozen=True)
class Root(Generic[S]):
    """The configuration that one verb reads."""

    name: str
    """Name of the verb."""
    schema: type[S]
    choice: str | None = None
    """Field that is one of several sections, told apart by their `name`; None without one."""
    sections: Mapping[str, type[Any]] = field(default_factory=dict)
    """Name -> section of the `choice`."""
    groups: Mapping[str, str | None] = field(default_factory=dict)
    """Group of presets (a folder of conf/) -> the preset that is chosen where none is given."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Name that other programs have for a thing -> its key here, or what to do instead."""
    refused: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """(key, value) that other programs have and this one refuses -> the reason, and the remedy."""

    def refusal(self, key: str, value: str) -> Problem | None:
        """The problem of a value that is known and refused, or None."""
        told = self.refused.get((key, value))
        return None if told is None else Problem(key, f"{value} {told[0]}", told[1])

    def keys(self, chosen: str | None = None) -> frozenset[str]:
        """Every dotted leaf key, with the fields of one chosen section, or of all for None."""
        keys = {key for key in _leaves(self.schema, "") if key != self.choice}
        for name, section in self.sections.items():
            if chosen in (None, name):
                keys.update(_leaves(section, f"{self.choice}."))
        return frozenset(keys)

    def unknown_key(self, key: str, chosen: str | None = None) -> Problem:
        """The problem of `key` not being in the schema (or not under the chosen section)."""
        if chosen is not None and key in self.keys():
            owners = [name for name in self.sections if key in self.keys(name)]
            return Problem(
                key,
                f"{self.choice}={chosen} does not have this setting, only {', '.join(owners)}",
                f"remove it, or choose {self.choice}={owners[0]}",
            )
        remedy = alias(key, self.aliases, self.keys())
        if remedy is not None:
            return Problem(key, "is not a key of the configuration", remedy)
        found = hint(key, self.keys(chosen))
        return Problem(key, f"is not a key of the configuration{found}", "correct or remove it")

    def parse_leniently(self, config: Mapping[str, Any]) -> tuple[S, list[Problem]]:
        """Parse, and name every mistake; a faulty value is replaced by its default.

        With an empty list the result is the configuration; otherwise it serves only to look for
        further problems, so that all of them can be named at once.
        """
        remaining = copy.deepcopy(dict(config))
        found: list[Problem] = []
        while True:
            try:
                return self.schema.model_validate(remaining), found
            except ValidationError as errors:
                for error in errors.errors(include_url=False):
                    if error["type"] == "default_factory_not_called":
                        continue  # worked out from a field that is named by itself
                    problem = self._as_problem(error, remaining)
                    found.append(problem)
                    if self.choice is not None and problem.key == f"{self.choice}.name":
                        remaining.pop(self.choice)
                    else:
                        _drop(remaining, problem.key)

    def parse(self, config: Mapping[str, Any]) -> S:
        """The typed configuration of a plain resolved mapping.

        Raises:
            UserError: unknown keys, wrong types, values out of range; all of them at once.
        """
        parsed, found = self.parse_leniently(config)
        raise_problems(found)
        return parsed

    def _as_problem(self, error: Mapping[str, Any], config: Mapping[str, Any]) -> Problem:
        key = self._schema_key(error["loc"])
        kind, context = error["type"], error.get("ctx", {})
        error_of_ours = context.get("error")
        if isinstance(error_of_ours, ConflictError):
            return error_of_ours.problem
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            return self.unknown_key(key, self._choice_of(config))
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            given = str(context.get("tag", "nothing"))
            article = "an" if str(self.choice)[0] in "aeiou" else "a"
            return Problem(
                f"{self.choice}.name",
                f"{given} is not {article} {self.choice}{hint(given, self.sections)}",
                f"choose {self.choice}={'|'.join(self.sections)}",
            )
        given = error["input"]
        shown = "null" if given is None else _shown(given)
        refusal = self.refusal(key, str(given))
        if refusal is not None:
            return refusal
        if kind == "literal_error":
            expected = context["expected"].replace("'", "")
            names = [name.strip() for name in expected.replace(" or ", ", ").split(",")]
            meant = closest(str(given), names)
            return Problem(
                key,
                f"{shown} is not one of {', '.join(names)}",
                f"did you mean {meant}?" if meant else "choose one of them",
            )
        if error_of_ours is not None:
            return Problem(key, f"{shown} is not allowed: {error_of_ours}", "correct the value")
        message = error["msg"][0].lower() + error["msg"][1:]
        return Problem(key, f"{shown} is not allowed: {message}", "correct the value")

    def _schema_key(self, location: tuple[int | str, ...]) -> str:
        parts = [str(part) for part in location]
        # pydantic puts the tag of the union into the location: objective.gdpo.alpha.
        if parts[0] == self.choice and len(parts) > 2 and parts[1] in self.sections:
            del parts[1]
        return ".".join(parts)

    def _choice_of(self, config: Mapping[str, Any]) -> str | None:
        section = None if self.choice is None else config.get(self.choice)
        name = section.get("name") if isinstance(section, Mapping) else None
        return name if isinstance(name, str) and name in self.sections else None


def _shown(value: Any) -> str:
    """A value for one line of a message."""
    text = repr(value)
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}... ({len(text)} characters)"


def _leaves(section: type[Any], prefix: str) -> Iterator[str]:
    for name, declared in fields_of(section).items():
        inner = section_of(declared)
        if inner is not None:
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _drop(config: dict[str, Any], key: str) -> None:
    """Remove the offending leaf, so that the schema's default stands in for it."""
    node: Any = config
    *parents, leaf = key.split(".")
    for parent in parents:
        if not isinstance(node, dict) or not isinstance(node.get(parent), dict):
            # A list element, or a section that is not a mapping: it is removed completely.
            node.pop(parent, None)
            return
        node = node[parent]
    node.pop(leaf, None)
