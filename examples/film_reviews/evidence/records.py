"""The records of finished jobs, as tables of seeds by prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_gdpo.errors import UserError

Values = npt.NDArray[np.float64]
SCHEMA = 1
BASE = "base"


@dataclass(frozen=True)
class Record:
    """One job."""

    arm: str
    family: str
    seed: int
    day: str
    labels: int
    objective: dict[str, Any]
    points: dict[tuple[int, float], dict[str, Values]]
    """(update, temperature) -> metric -> one value a prompt, nan for none."""
    seconds: dict[str, float]

    @property
    def updates(self) -> list[int]:
        """At which it was measured at temperature 1."""
        return sorted(update for update, temperature in self.points if temperature == 1.0)


@dataclass(frozen=True)
class Records:
    """All jobs of one profile."""

    by_arm: dict[str, dict[int, Record]]
    """Arm -> seed -> record."""
    prompts: int

    def arms_of(self, name: str) -> list[str]:
        """The arms of a family, or the arm itself; none when nothing of it was run."""
        found = [arm for arm, some in self.by_arm.items() if _any(some).family == name]
        return found or ([name] if name in self.by_arm else [])

    def seeds(self, arms: Iterable[str]) -> list[int]:
        """Seeds that all of these have."""
        common = [set(self.by_arm[arm]) for arm in arms]
        return sorted(set.intersection(*common)) if common else []

    def table(
        self, arm: str, seeds: Sequence[int], point: tuple[int, float], metric: str
    ) -> Values:
        """[seeds, prompts]; nan where a value is missing."""
        missing = np.full(self.prompts, np.nan)
        return np.stack(
            [self.by_arm[arm][seed].points[point].get(metric, missing) for seed in seeds]
        )

    def last(self, arm: str) -> tuple[int, float]:
        """The last update of an arm, at temperature 1."""
        return (_any(self.by_arm[arm]).updates[-1], 1.0)


def _any(some: dict[int, Record]) -> Record:
    return next(iter(some.values()))


def read_records(directory: Path, order: Sequence[str] = ()) -> Records:
    """All records of a directory.

    Args:
        directory: of `<arm>--seed-<n>.json`.
        order: of the arms; others follow.

    Raises:
        UserError: there is none, one does not read, or two do not compare.
    """
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise UserError(f"{directory}: holds no record; run make experiment first")
    found: dict[str, dict[int, Record]] = {}
    first: tuple[Path, Any] | None = None
    prompts = 0
    for path in paths:
        plain = _plain(path)
        shared = (plain["prompts"], plain["model"], plain["identity"]["settings"])
        if first is None:
            first, prompts = (path, shared), len(plain["prompts"])
        elif shared != first[1]:
            raise UserError(
                f"{path}: other prompts, model or settings than {first[0].name}; the two do not "
                "compare: remove the older ones and run make experiment again"
            )
        record = _record(plain)
        found.setdefault(record.arm, {})[record.seed] = record
    names = [*[n for n in order if n in found], *[n for n in found if n not in order]]
    return Records({name: found[name] for name in names}, prompts)


def _plain(path: Path) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); remove it and run its job again") from None
    if plain.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema is not {SCHEMA}; remove it and run its job again")
    return plain


def _record(plain: dict[str, Any]) -> Record:
    return Record(
        arm=plain["arm"],
        family=plain["family"],
        seed=plain["seed"],
        day=plain["day"],
        labels=plain["labels"],
        objective=plain["identity"]["objective"],
        seconds=plain["seconds"],
        points={
            (point["update"], point["temperature"]): {
                name: np.array([np.nan if v is None else v for v in row], dtype=np.float64)
                for name, row in point["metrics"].items()
            }
            for point in plain["points"]
        },
    )
