"""Counts of broken constraints over many answers, and what a first round says by them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_gdpo.errors import UserError


class Counts:
    """How many answers broke each constraint."""

    def __init__(self, names: Iterable[str]) -> None:
        self.broken: dict[str, int] = dict.fromkeys(names, 0)
        """Constraint's name -> answers that broke it."""
        self.samples = 0
        self.met = 0
        """Answers that met all."""

    def add(self, broken: Sequence[str]) -> None:
        """Count one answer.

        Args:
            broken: of its verdict, or of its row.

        Raises:
            KeyError: a name that is not one of the constraints.
        """
        self.samples += 1
        self.met += not broken
        for name in broken:
            self.broken[name] += 1

    def lines(self) -> list[str]:
        """`3 of 8 samples broke forbidden.dull`, for each constraint, and how many met all."""
        lines = [f"{n} of {self.samples} samples broke {name}" for name, n in self.broken.items()]
        return [*lines, f"{self.met} of {self.samples} samples met all constraints"]

    def never_met(self) -> tuple[str, ...]:
        """Constraints that no answer met; none before there is an answer."""
        return tuple(name for name, n in self.broken.items() if n == self.samples > 0)


def refuse_never_met(counts: Counts) -> None:
    """Stop a run whose first round shows that it can learn nothing: every reward would be 0.

    Args:
        counts: over all answers of the first round.

    Raises:
        UserError: naming each constraint that no answer met; or that none met all together.
    """
    never = counts.never_met()
    if never:
        named = ", ".join(f"constraints.{name}" for name in never)
        raise UserError(
            f"{named}: none of the {counts.samples} samples of the first round met "
            f"{'it' if len(never) == 1 else 'them'}, so every reward would be 0; loosen it, ask "
            "for it in the prompts, or sample more"
        )
    if counts.samples and not counts.met:
        raise UserError(
            f"constraints: none of the {counts.samples} samples of the first round met all of "
            f"{', '.join(counts.broken)} together, so every reward would be 0; loosen one, ask for "
            "them in the prompts, or sample more"
        )
