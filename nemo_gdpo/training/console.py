"""What training shows as it goes: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from nemo_gdpo.models.preference_model import LOSS
from nemo_gdpo.progress import duration, progress_bar, shows_bars
from nemo_gdpo.training.metrics import PEAK_MEMORY, TOKENS_PER_SECOND

MARGIN, ACCURACY = "rewards/margins", "rewards/accuracies"
_SHOWN = (
    (LOSS, "loss {:.4f}"),
    (MARGIN, "margin {:.3f}"),
    (ACCURACY, "accuracy {:.2f}"),
    ("learning_rate", "lr {:.2e}"),
    (TOKENS_PER_SECOND, "{:.0f} tokens/s"),
    (PEAK_MEMORY, "{:.1f} GiB"),
)
"""Columns of a line, in order; one that a step does not have is left out."""


def shown(entry: Mapping[str, Any], prefix: str = "") -> str:
    """The columns of a step, or of a validation with the prefix `val/`, in one line."""
    return ", ".join(
        text.format(entry[prefix + name]) for name, text in _SHOWN if prefix + name in entry
    )


class StepReport:
    """Shows every update on the main rank; nothing elsewhere."""

    def __init__(self, total: int, done: int, *, every: int, enabled: bool) -> None:
        """Begin.

        Args:
            total: updates of the run.
            done: of them, before this start.
            every: updates between two lines, where there is no terminal.
            enabled: this is the main rank.
        """
        self._total, self._done, self._every = total, done, every
        self._has_lines = enabled and not shows_bars()
        self._bar = progress_bar(
            total=total,
            initial=done,
            unit="step",
            label="train",
            enabled=enabled and not self._has_lines,
        )
        self._is_first = True
        self._timed_from: tuple[float, int] | None = None

    def step(self, entry: Mapping[str, Any]) -> None:
        """Show an update that was made.

        Args:
            entry: its line of metrics.jsonl.
        """
        self._done += 1
        if self._has_lines:
            self._line(entry)
        elif LOSS in entry and MARGIN in entry:
            text = f"loss {entry[LOSS]:.4f}, margin {entry[MARGIN]:.3f}"
            speed = f", {entry[TOKENS_PER_SECOND]:.0f} tokens/s"
            self._bar.set_postfix_str(text + speed, refresh=False)
        self._bar.update()

    def _line(self, entry: Mapping[str, Any]) -> None:
        if self._is_first or self._done == self._total or self._done % self._every == 0:
            left = self._left()
            text = f"step {self._done} of {self._total}: {shown(entry) or 'no numbers'}{left}"
            print(text, flush=True)
        if f"val/{LOSS}" in entry:
            print(f"validation after {self._done} steps: {shown(entry, 'val/')}", flush=True)
        self._is_first = False
        if self._timed_from is None:  # the first update compiles kernels and warms caches
            self._timed_from = time.monotonic(), self._done

    def _left(self) -> str:
        """Time to the end at the pace since the first update, validations and checkpoints too."""
        if self._timed_from is None or self._done == self._total:
            return ""
        since, done = self._timed_from
        pace = (time.monotonic() - since) / (self._done - done)
        return f", {duration(pace * (self._total - self._done))} left"

    def __enter__(self) -> StepReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
