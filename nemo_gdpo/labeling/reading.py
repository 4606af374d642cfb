"""A file of answers, checked completely before any of it is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.jsonl import read_objects
from nemo_gdpo.labeling import lines, studio
from nemo_gdpo.labeling.events import Answer
from nemo_gdpo.labeling.state import State

Format = Literal["label_studio", "jsonl"]
_SHOWN = 10
"""Problems that are told of one file."""


def read_answers(path: Path, format: Format, state: State) -> list[Answer]:
    """The answers in a file.

    Raises:
        UserError: it cannot be read, or lines of it are malformed or do not fit the ledger; all
            of them at once, with their places.
    """
    if not path.is_file():
        raise UserError(f"label.answers={path}: file not found; give the file that came back")
    found: list[Answer] = []
    problems: list[str] = []

    def take(error: UserError) -> None:
        problems.append(str(error))

    for where, _, row in read_objects(path, take):
        try:
            found += _in(row, format, state, where)
        except UserError as error:
            take(error)
    if len(problems) > _SHOWN:
        problems[_SHOWN:] = [f"{len(problems) - _SHOWN} more in {path}; mend these first"]
    raise_problems(problems)
    return found


def _in(row: Mapping[str, Any], format: Format, state: State, where: str) -> Iterator[Answer]:
    if format == "label_studio":
        yield from studio.answers_in(row, state, where)
        return
    answer = lines.answer_in(row, state, where)
    if answer is not None:
        yield answer
