"""One thing that is wrong with a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_gdpo.errors import UserError


@dataclass(frozen=True)
class Problem:
    """A key, why it cannot be honoured, and what to do about it."""

    key: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}; {self.remedy}"


class ConflictError(ValueError):
    """Settings of one section that exclude each other."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def raise_problems(found: Sequence[Problem | str]) -> None:
    """Raise all of `found` as one error: one problem on the line itself, several below it.

    Raises:
        UserError: unless `found` is empty.
    """
    if len(found) == 1:
        raise UserError(str(found[0]))
    if found:
        lines = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(found, 1))
        raise UserError(f"{len(found)} problems:{lines}")
