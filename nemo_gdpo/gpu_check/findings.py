"""Results of stages: measurements with their limits, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a stage ended."""

    PASSED = "passed"
    FAILED = "failed"
    """It broke, took too long, or a measurement is outside its limit."""
    NOT_HERE = "not here"
    """This machine lacks what the stage is about."""
    NOT_RUN = "not run"
    """The time was over."""


@dataclass(frozen=True)
class Measurement:
    """One number or fact."""

    name: str
    value: float | str
    unit: str = ""
    limit: str = ""
    """What `ok` was judged by, for people; "" where nothing was judged."""
    ok: bool = True


@dataclass(frozen=True)
class StageResult:
    """One stage's outcome on one machine."""

    stage: str
    status: Status
    seconds: float
    measurements: tuple[Measurement, ...] = ()
    reason: str = ""
    """One line: why it failed, or does not apply."""
    machine: dict[str, str] = field(default_factory=dict)
    """Versions and devices it ran with; a result for another machine or version is not reused."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StageResult:
        """What `to_dict` gave."""
        rows = tuple(Measurement(**row) for row in values["measurements"])
        return cls(**{**values, "status": Status(values["status"]), "measurements": rows})


class NotHereError(Exception):
    """A stage's subject does not exist on this machine; the message says what is missing."""


def at_most(name: str, value: float, limit: float, unit: str = "") -> Measurement:
    """A number that has to be at most `limit`; NaN is not."""
    return Measurement(name, value, unit, f"<= {limit:.3g}", ok=value <= limit)


def at_least(name: str, value: float, limit: float, unit: str = "") -> Measurement:
    """A number that has to be at least `limit`; NaN is not."""
    return Measurement(name, value, unit, f">= {limit:.3g}", ok=value >= limit)


def judge(
    stage: str, measurements: Iterable[Measurement], seconds: float, machine: dict[str, str]
) -> StageResult:
    """Passed when every measurement is within its limit."""
    rows = tuple(measurements)
    bad = [row for row in rows if not row.ok]
    reason = "; ".join(f"{row.name} is {shown(row)}, not {row.limit}" for row in bad)
    status = Status.FAILED if bad else Status.PASSED
    return StageResult(stage, status, seconds, rows, reason, machine)


def shown(row: Measurement) -> str:
    """Value and unit."""
    value = row.value if isinstance(row.value, str) else f"{row.value:.4g}"
    return f"{value} {row.unit}".strip()


def markdown(results: Sequence[StageResult]) -> str:
    """A table of stages and one of measurements."""
    lines = ["| stage | result | seconds | why |", "|---|---|---|---|"]
    lines += [f"| {r.stage} | {r.status} | {r.seconds:.0f} | {r.reason} |" for r in results]
    lines += ["", "| stage | measurement | value | limit | |", "|---|---|---|---|---|"]
    for result in results:
        for row in result.measurements:
            mark = "" if not row.limit else "ok" if row.ok else "**no**"
            cells = (result.stage, row.name, shown(row), row.limit, mark)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
