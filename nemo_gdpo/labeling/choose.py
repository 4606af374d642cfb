"""Which pairs are asked about next: the most uncertain first, or by lot at the same budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.jsonl import json_object, read_objects
from nemo_gdpo.labeling.events import Question
from nemo_gdpo.labeling.pairs import draw

Strategy = Literal["uncertain", "random"]
FORMAT = 1
"""Version of the file of margins."""


@dataclass(frozen=True)
class Margins:
    """Implicit reward margins beta h of a data set's pairs under one model."""

    model: str
    """Hash of the weights that they are of."""
    base: str
    """Fingerprint of the weights that training starts from."""
    step: int
    """Updates after which they were computed."""
    data: str
    """Fingerprint of the set of all pairs of the data set."""
    of_pair: Mapping[str, float]
    """Pair -> margin of the response that the data prefers over the other one."""


def ordered(questions: Iterable[Question], strategy: Strategy, seed: int) -> list[Question]:
    """Questions, the most wanted first.

    Args:
        questions: with margins, for `uncertain`.
        strategy: the smallest |margin| first (Ji, He & Gu 2024 ask where |beta h| <= gamma), or in
            an order that is drawn.
        seed: draws that order, and the one among equal margins: before the first update all
            margins are 0, and both strategies are one.
    """

    def place(question: Question) -> tuple[float, int]:
        lot = draw(seed, "lot", question.pair)
        if strategy == "random":
            return 0.0, lot
        assert question.margin is not None
        return abs(question.margin), lot

    return sorted(questions, key=place)


def header(margins: Margins) -> dict[str, Any]:
    """The first line of the file of margins."""
    return {
        "margins": FORMAT,
        "model": margins.model,
        "base": margins.base,
        "step": margins.step,
        "data": margins.data,
        "pairs": len(margins.of_pair),
    }


def read_margins(path: Path) -> Margins:
    """Margins that `nemo-gdpo label margins` wrote.

    Raises:
        UserError: the file is something else, or cut.
    """
    if not path.is_file():
        raise UserError(f"label.margins={path}: file not found; nemo-gdpo label margins makes it")
    with path.open("rb") as lines:
        head = json_object(lines.readline(), f"{path}, line 1")
    if head.get("margins") != FORMAT:
        raise UserError(
            f"label.margins={path}: is not written by nemo-gdpo label margins of this version; "
            "run it again"
        )
    found: dict[str, float] = {}
    for where, number, row in read_objects(path):
        if number > 1:
            found[str(row.get("pair"))] = _margin(row.get("margin"), where)
    if len(found) != head["pairs"]:
        raise UserError(
            f"label.margins={path}: has {len(found)} margins, and its first line says "
            f"{head['pairs']}; run nemo-gdpo label margins again"
        )
    return Margins(head["model"], head["base"], head["step"], head["data"], found)


def _margin(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: margin is no finite number; run nemo-gdpo label margins again")
    return float(value)
