"""Progress: a bar on a terminal; a line now and then in a log file, which nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from tqdm import tqdm

DELAY_SECONDS = 3.0
"""Time before a bar appears."""
FIRST_LINE_SECONDS = 10.0
"""Time before the first line, where there is no terminal: what is over by then says nothing."""
LINE_SECONDS = 30.0
"""Time between two lines."""


def shows_bars() -> bool:
    """Whether stderr is a terminal, on which a bar can be drawn over and over."""
    return sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Seconds in words, by the two greatest units: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


class TimedLines:
    """The calls of a bar that this program uses, answered by a line on stderr every half minute."""

    def __init__(
        self,
        iterable: Iterable[Any] | None,
        *,
        total: int | None,
        unit: str,
        label: str,
        initial: int = 0,
        unit_scale: bool = False,
    ) -> None:
        """Count from `initial`; the arguments are those of `progress_bar`."""
        self._iterable = iterable
        self._total = total
        self._units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
        self._label = label
        self._initial = self._done = initial
        self._is_bytes = unit_scale
        self._begun = time.monotonic()
        self._next = self._begun + FIRST_LINE_SECONDS
        self._told = False
        self._note = ""

    def update(self, n: int = 1) -> None:
        """Count `n` more; prints a line when it is time for one."""
        self._done += n
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LINE_SECONDS
            self._told = True
            shown = f"{self._count()}{self._share()}, {self._speed(now)}{self._left(now)}"
            self._print(shown + (f", {self._note}" if self._note else ""))

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """Put `text` at the end of the lines to come."""
        del refresh
        self._note = text

    def close(self) -> None:
        """Say how long it took, if anything was said before."""
        if self._told:
            self._told = False
            now = time.monotonic()
            self._print(f"{self._count()} in {duration(now - self._begun)}, {self._speed(now)}")

    def _print(self, text: str) -> None:
        print(f"{self._label}: {text}", file=sys.stderr, flush=True)

    def _shown(self, value: float) -> str:
        return f"{value / 2**30:.2f} GiB" if self._is_bytes else f"{value:.0f}"

    def _count(self) -> str:
        of = "" if self._total is None else f" of {self._shown(self._total)}"
        return f"{self._shown(self._done)}{of}" + ("" if self._is_bytes else f" {self._units}")

    def _share(self) -> str:
        return "" if not self._total else f" ({self._done / self._total:.0%})"

    def _rate(self, now: float) -> float:
        return (self._done - self._initial) / max(now - self._begun, 1e-9)

    def _speed(self, now: float) -> str:
        rate = self._rate(now)
        return f"{self._shown(rate)}/s" if self._is_bytes else f"{_number(rate)} {self._units}/s"

    def _left(self, now: float) -> str:
        rate = self._rate(now)
        if self._total is None or not rate:
            return ""
        return f", {duration(max(self._total - self._done, 0) / rate)} left"

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update()
        self.close()

    def __enter__(self) -> TimedLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None,
    unit: str,
    label: str,
    enabled: bool,
    initial: int = 0,
    unit_scale: bool = False,
) -> Any:
    """A tqdm bar on stderr that appears after three seconds; `TimedLines` where it is a file.

    Args:
        iterable: counted as it is gone through; None is counted by `update`.
        total: how many there are; None is not known.
        unit: what is counted, in the singular.
        label: what is being done.
        enabled: False shows nothing.
        initial: done before.
        unit_scale: the unit is bytes.
    """
    if enabled and not shows_bars():
        return TimedLines(
            iterable, total=total, unit=unit, label=label, initial=initial, unit_scale=unit_scale
        )
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        desc=label,
        disable=not enabled,
        delay=DELAY_SECONDS,
        dynamic_ncols=True,
        mininterval=0.5,
    )
