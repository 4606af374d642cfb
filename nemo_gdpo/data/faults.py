"""What is done about a bad row: it stops the run, is dropped and counted, or is kept for a list."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from nemo_gdpo.errors import UserError

SHOWN = 10
"""Problems of one kind that a list has; the others are counted."""
_DIGITS = re.compile(r"\d+")


class BadPairError(UserError):
    """A row that reads well but cannot be learned from; `on_bad_pair=drop` leaves it out.

    Attributes:
        reason: its name in the counts.
    """

    def __init__(
        self,
        where: str,
        reason: str,
        detail: str = "",
        *,
        said: str | None = None,
        remedy: str = "fix or remove it",
    ) -> None:
        """Put the message together.

        Args:
            where: file and line.
            reason: name in the counts.
            detail: behind the reason, in brackets.
            said: what the message says instead of reason and detail.
            remedy: what to do about it in the file; empty where `said` tells.
        """
        told = f"{said or reason}{f' ({detail})' if detail else ''}"
        super().__init__(f"{where}: {told}{f'; {remedy}' if remedy else ''}")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """As messages between processes carry it: with the message as it stands."""
        return _again, (str(self), self.reason)


def _again(message: str, reason: str) -> BadPairError:
    """A copy of an error, which was put together before."""
    error = BadPairError.__new__(BadPairError)
    error.args = (message,)
    error.reason = reason
    return error


class EveryRowError(UserError):
    """A mistake that is of the whole file, or of no row at all: it is said once."""


@dataclass
class Faults:
    """Takes the mistakes in rows, one by one."""

    drop: bool = False
    """Leave bad pairs out, and count them."""
    counts: dict[str, int] = field(default_factory=dict)
    """Reason -> bad pairs that were left out."""
    collected: list[str] | None = None
    """Where problems are listed instead of being raised; None raises the first."""

    def take(self, error: UserError) -> None:
        """Count, list or raise a mistake; the caller goes on to the next row.

        Raises:
            UserError: the mistake, unless it is counted or listed.
            EveryRowError: the mistake, in any case.
        """
        if isinstance(error, BadPairError):
            if self.drop:
                self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
                return
            error = UserError(f"{error}, or set data.on_bad_pair=drop to drop and count such pairs")
        if self.collected is None or isinstance(error, EveryRowError):
            raise error from None
        self.collected.append(str(error))


def shortened(problems: list[str]) -> list[str]:
    """Problems in their order, at most `SHOWN` of those that differ in numbers only."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_DIGITS.sub("#", problem), []).append(problem)
    shown: list[str] = []
    for alike in kinds.values():
        shown += alike[:SHOWN]
        if len(alike) > SHOWN:
            shown[-1] += f" (and {len(alike) - SHOWN} more like it)"
    return shown
