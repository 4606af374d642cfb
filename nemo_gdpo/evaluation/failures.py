"""What an evaluation could not measure: the rest is measured and written, and it ends with this."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.results import Missing

T = TypeVar("T")


class Failures:
    """The parts that failed, in their order."""

    def __init__(self) -> None:
        self.missing: list[Missing] = []
        """For the results."""
        self._errors: list[UserError | EvaluationError] = []

    def attempt(self, what: str, measure: Callable[[], T]) -> T | None:
        """The result of `measure`; None where it fails, which is kept.

        A mistake in the input or a failing server leaves the other parts as they are. A disk that
        fails does not, and passes.

        Args:
            what: the part, for a reader: `reward.vader of base at T=1`.
            measure: raises what it cannot do.
        """
        try:
            return measure()
        except (UserError, EvaluationError) as error:
            self.add(what, error)
            return None

    def attempt_once(self, what: str, measure: Callable[[], T]) -> T | None:
        """The same for a part that is measured many times: it has failed when it fails once."""
        if any(part.what == what for part in self.missing):
            return None
        return self.attempt(what, measure)

    def add(self, what: str, error: UserError | EvaluationError) -> None:
        """Keep the failure of a part."""
        self.missing.append(Missing(what, str(error)))
        self._errors.append(error)

    def error(self, written: str) -> UserError | RunError | None:
        """What to end with; None where nothing failed.

        Args:
            written: where the rest is.
        """
        if not self._errors:
            return None
        first = self._errors[0]
        more = len(self._errors) - 1
        others = f" (and {more} more failures)" if more else ""
        kind = UserError if isinstance(first, UserError) else type(first)
        return kind(f"{first}{others}; {written}")
