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
At = tuple[int, float]
"""Where something was measured: (update, temperature)."""
SCHEMA = 1
BASE = "base"
START: At = (0, 1.0)
"""The untouched model, sampled from its own distribution: every run begins there."""

WORDS = {
    "kl": "KL",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "matched_semantic_diversity": "semantic diversity at alike length",
    "matched_distinct_2": "distinct-2 at alike length",
}


def words(metric: str) -> str:
    """A metric's name in a sentence."""
    return WORDS.get(metric, metric.replace("_", " "))


@dataclass(frozen=True)
class Record:
    """One job."""

    arm: str
    family: str
    seed: int
    day: str
    labels: int
    """Labels that were asked for."""
    pairs: int
    seconds: dict[str, float]
    """Stage -> duration."""
    identity: dict[str, Any]
    points: dict[At, dict[str, Values]]
    """Metric -> one value a prompt, nan for none."""


@dataclass(frozen=True)
class Records:
    """All jobs of one experiment."""

    by_arm: dict[str, dict[int, Record]]
    """Arm -> seed -> record."""
    prompts: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether an arm, or an arm of this family, was run."""
        return bool(self.members(name))

    def members(self, name: str) -> list[str]:
        """The arms of a family, or the one arm of that name; an arm's name comes first."""
        if name in self.by_arm:
            return [name]
        return [arm for arm in self.by_arm if self.family(arm) == name]

    def family(self, arm: str) -> str:
        """To which an arm belongs."""
        return next(iter(self.by_arm[arm].values())).family

    def seeds(self, arms: Iterable[str]) -> list[int]:
        """Seeds that all of these have, in order."""
        found = [set(self.by_arm[arm]) for arm in arms]
        return sorted(set.intersection(*found)) if found else []

    def missing_seeds(self, arms: Sequence[str]) -> dict[str, list[int]]:
        """Arm -> seeds that another of these has and it has not."""
        every = {seed for arm in arms for seed in self.by_arm[arm]}
        gaps = {arm: sorted(every - set(self.by_arm[arm])) for arm in arms}
        return {arm: gap for arm, gap in gaps.items() if gap}

    def points(self, arm: str, seeds: Iterable[int] | None = None) -> list[At]:
        """Where all of an arm's seeds were measured, in order."""
        some = self.by_arm[arm]
        found = [set(some[seed].points) for seed in (some if seeds is None else seeds)]
        return sorted(set.intersection(*found)) if found else []

    def last(self, arm: str, seeds: Iterable[int] | None = None) -> At | None:
        """The last update at which all of an arm's seeds were measured at temperature 1."""
        at_one = [at for at in self.points(arm, seeds) if at[1] == 1.0]
        return at_one[-1] if at_one else None

    def table(self, arm: str, seeds: Sequence[int], at: At, metric: str) -> Values:
        """One metric at one point, [seeds, prompts]; nan where a value is missing."""
        none = np.full(len(self.prompts), np.nan)
        if arm == BASE and at == START and _is_change(metric):
            return np.zeros((len(seeds), len(self.prompts)))
        return np.stack(
            [self.by_arm[arm][seed].points.get(at, {}).get(metric, none) for seed in seeds]
        )

    def labels(self, arm: str) -> float:
        """Asked for, mean over seeds."""
        return float(np.mean([record.labels for record in self.by_arm[arm].values()]))


def _is_change(metric: str) -> bool:
    """Whether it is measured against the untouched model, whose own value is 0 by definition."""
    return metric == "kl" or metric.startswith("matched_")


def read_records(directory: Path) -> Records:
    """All records of a directory, `<arm>--seed-<n>.json`.

    Raises:
        UserError: there is none, one does not read, two cannot be compared (other prompts, another
            order of them, other settings, another model), or the untouched model is missing.
    """
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise UserError(f"{directory}: holds no record; run make experiment first")
    read = [(path, _plain(path)) for path in paths]
    first_path, first = read[0]
    found: dict[str, dict[int, Record]] = {}
    for path, plain in read:
        for what, own, other in zip(
            ("prompts", "settings", "model"), _shared(plain), _shared(first), strict=True
        ):
            if own != other:
                raise UserError(
                    f"{path}: other {what} than {first_path.name}, so the two do not compare; "
                    "remove the older one and run make experiment again"
                )
        record = _record(path, plain, len(first["prompts"]))
        found.setdefault(record.arm, {})[record.seed] = record
    if BASE not in found:
        raise UserError(f"{directory}: has no record of the arm {BASE}, where every run begins")
    return Records(found, tuple(first["prompts"]))


def _shared(plain: dict[str, Any]) -> tuple[Any, Any, Any]:
    return plain["prompts"], plain["identity"].get("settings"), plain.get("model")


def _plain(path: Path) -> dict[str, Any]:
    remedy = "remove it and run its job again"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a record of schema {SCHEMA}; {remedy}")
    wanted = ("identity", "arm", "family", "seed", "day", "labels", "pairs", "seconds", "prompts")
    missing = [key for key in (*wanted, "points") if key not in plain]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}; {remedy}")
    if path.name != (name := f"{plain['arm']}--seed-{plain['seed']}.json"):
        raise UserError(f"{path}: is the record of {name}; give it that name or remove it")
    return plain


def _record(path: Path, plain: dict[str, Any], prompts: int) -> Record:
    points: dict[At, dict[str, Values]] = {}
    for point in plain["points"]:
        at = (int(point["update"]), float(point["temperature"]))
        if at in points:
            raise UserError(f"{path}: update {at[0]} at temperature {at[1]:g} is there twice")
        points[at] = {
            name: _values(f"{path}: update {at[0]}: {name}", row, prompts)
            for name, row in point["metrics"].items()
        }
    kept = ("arm", "family", "seed", "day", "labels", "pairs", "seconds", "identity")
    return Record(**{key: plain[key] for key in kept}, points=points)


def _values(where: str, row: Sequence[float | None], prompts: int) -> Values:
    if len(row) != prompts:
        raise UserError(f"{where}: {len(row)} values for {prompts} prompts; run the job again")
    values = np.array([np.nan if value is None else value for value in row], dtype=np.float64)
    if np.isinf(values).any():
        raise UserError(f"{where}: holds an infinite value; run the job again")
    return values
