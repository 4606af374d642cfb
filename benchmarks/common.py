"""What the benchmarks share: parts that are kept, the machine's name, spread, peaks, growth."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log
from pathlib import Path
from typing import Any

import torch

from nemo_gdpo.io.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "bench"


def machine() -> str:
    """Processor and cores, as Linux names them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{model[0] if model else platform.machine()}, {os.cpu_count()} cores"


def spread(values: Sequence[float], digits: str = ".3g") -> str:
    """Median, and [least, most] where there are several; empty for none."""
    if not values:
        return ""
    middle = format(statistics.median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):{digits}}, {max(values):{digits}}]"


def one_thread() -> None:
    """Torch's operations on one thread, as the goals count them."""
    torch.set_num_threads(1)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Nothing on the descriptor: torch 2.13's profiler says there that it begins and ends."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def peak_live_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors on the CPU that `work` held at one time, above those before it.

    Torch's allocator reports every block: what libraries below it keep for themselves (oneDNN's
    packed operands, say) is not seen.
    """
    # Its events are not shown, but counted: no table of torch has a peak.
    with _without_stderr(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    found = [one for one in profile.kineto_results.events() if one.name() == "[memory]"]
    live = peak = 0
    for event in sorted(found, key=lambda one: one.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of a straight line through log value against log size: 1 is proportional, 0 is flat.

    Args:
        sizes: at least two different ones, all above 0.
        values: at each; all above 0.
    """
    over, under = [log(one) for one in sizes], [log(one) for one in values]
    return statistics.linear_regression(over, under).slope


class Parts:
    """Parts of a benchmark, each kept in a JSON file as soon as it is there.

    The same command goes on where it was stopped; other settings, or `--again`, begin anew.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], asked: Namespace) -> None:
        """Read what is there.

        Args:
            path: of the file.
            settings: of the measurement; parts measured with others are put aside.
            asked: has the options of `Parts.options`.
        """
        self._path, self._begun, self._minutes = path, time.monotonic(), asked.minutes
        self.told = {"machine": machine(), "torch": torch.__version__, **settings}
        self.parts: dict[str, Any] = {}
        if path.is_file() and not asked.again:
            there = json.loads(path.read_text(encoding="utf-8"))
            # As JSON has it: a tuple is a list there.
            if {k: there[k] for k in there if k != "parts"} == json.loads(json.dumps(self.told)):
                self.parts = there["parts"]

    @staticmethod
    def options(parser: ArgumentParser, minutes: float = 10) -> None:
        """Add what `asked` has to have."""
        parser.add_argument("--quick", action="store_true", help="tiny: does it work?")
        parser.add_argument("--again", action="store_true", help="keep nothing of an earlier run")
        parser.add_argument(
            "--minutes",
            type=float,
            default=minutes,
            help="begin no part after so many; %(default)s",
        )

    def run(self, todo: Sequence[tuple[str, Callable[[], Any]]]) -> bool:
        """Do what is missing, in order; whether all is there."""
        for name, work in todo:
            if name in self.parts:
                continue
            spent = (time.monotonic() - self._begun) / 60
            if spent > self._minutes:
                print(
                    f"bench: {self._minutes:g} minutes are over before {name}; the same command "
                    "goes on there",
                    file=sys.stderr,
                )
                return False
            print(f"{spent:5.1f} min  {name}", flush=True)
            self.parts[name] = work()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {**self.told, "parts": self.parts})
        return True

    def of(self, beginning: str) -> list[Any]:
        """What the parts found whose names begin so, in order."""
        return [found for name, found in self.parts.items() if name.startswith(beginning)]

    def heading(self) -> str:
        """Where and with what it ran, one line."""
        return ", ".join(f"{name} {value}" for name, value in self.told.items())


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table."""
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
