"""Log-probs of labels, forward and backward, on one thread of a CPU: this project's head beside
full logits, TRL's chunked head and Liger's.

    make bench BENCH=heads                       by a Python that has TRL and Liger
    python -m benchmarks.heads --arms "full logits" ours

All heads run in one process, in turn, in rounds. The values are checked in every round: log-probs,
loss and both gradients. Memory is the peak of live tensors above the inputs, in a run of its own,
gradients that are returned included. Ends with 1 where a head is not there or differs,
with 75 where the minutes were over.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.common import RUNS, Parts, markdown, one_thread, peak_live_bytes, spread
from benchmarks.heads.arms import ARMS, FULL, OURS, Arm, Inputs
from nemo_gdpo.errors import EXIT_REQUEUE

TOLERANCES = {"log p": 2e-5, "sum": 2e-6, "loss": 1e-5, "hidden grad": 2e-5, "weight grad": 2e-5}
"""Nats of a token's log-prob; all others relative: the sum over a sequence, the loss, and the norm
of a gradient's difference."""
MOST_MEMORY, MOST_TIME = 0.25, 1.1
"""Goals, of full logits."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heads", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--vocabularies", type=int, nargs="+", default=[32768, 131072])
    add("--sequences", type=int, default=8, help="half of them chosen; default: %(default)s")
    add("--length", type=int, default=512, help="of each; default: %(default)s")
    add("--hidden", type=int, default=256, help="default: %(default)s")
    add("--rounds", type=int, default=3)
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    add("--folder", type=Path, default=RUNS, help="gets heads.json; default: runs/bench")
    Parts.options(parser)
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.vocabularies, asked.sequences, asked.length = [1000, 2000], 4, 24
        asked.hidden, asked.rounds = 32, 2
    if FULL not in asked.arms:
        parser.error(f'--arms has to have "{FULL}", which the others are compared with')
    return asked


class Found:
    """Values and gradients of one run, and its CPU seconds."""

    def __init__(self, arm: Arm, inputs: Inputs) -> None:
        """Forward and backward."""
        inputs.hidden_STH.grad = inputs.weight_VH.grad = None
        begun = time.process_time()
        scored = arm(inputs)
        middle = time.process_time()
        scored.loss.backward()  # type: ignore[no-untyped-call]
        ended = time.process_time()
        self.forward, self.backward = middle - begun, ended - middle
        self.loss, self.sums_S = scored.loss.detach(), scored.sums_S.detach()
        self.logps_ST = None if scored.logps_ST is None else scored.logps_ST.detach()
        self.hidden_grad, self.weight_grad = inputs.hidden_STH.grad, inputs.weight_VH.grad

    def gaps(self, plain: Found) -> dict[str, float]:
        """Differences from another run, by the names of `TOLERANCES`."""
        found = {
            "sum": _relative(self.sums_S, plain.sums_S),
            "loss": _relative(self.loss, plain.loss),
            "hidden grad": _relative(self.hidden_grad, plain.hidden_grad),
            "weight grad": _relative(self.weight_grad, plain.weight_grad),
        }
        if self.logps_ST is not None and plain.logps_ST is not None:
            found["log p"] = float((self.logps_ST - plain.logps_ST).abs().max())
        return found


def _relative(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None and other is not None
    return float((one - other).norm() / other.norm())


def a_round(arms: Mapping[str, Arm], sizes: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Every head once: its seconds, and how far it is from full logits."""
    inputs = Inputs.random(*sizes)
    found: dict[str, dict[str, Any]] = {}
    plain = Found(arms[FULL], inputs)
    for name, arm in arms.items():
        one = plain if arm is arms[FULL] else Found(arm, inputs)
        found[name] = {"forward": one.forward, "backward": one.backward, "gaps": one.gaps(plain)}
    return found


def memory(arms: Mapping[str, Arm], sizes: tuple[int, ...]) -> dict[str, int]:
    """Peak of live bytes of every head; the run before it is the warm-up of all rounds."""
    inputs, found = Inputs.random(*sizes), {}
    for name, arm in arms.items():

        def once(arm: Arm = arm) -> None:
            inputs.hidden_STH.grad = inputs.weight_VH.grad = None
            arm(inputs).loss.backward()  # type: ignore[no-untyped-call]

        once()
        inputs.hidden_STH.grad = inputs.weight_VH.grad = None
        found[name] = peak_live_bytes(once)
    return found


def wrong(parts: Parts) -> Iterator[str]:
    """Values that differ by more than they may."""
    for part, found in parts.parts.items():
        for arm, one in found.items() if "round" in part else ():
            for what, gap in one["gaps"].items():
                if not gap <= TOLERANCES[what]:  # NaN is wrong, too
                    yield f"{part}: {arm}: {what} differs from {FULL} by {gap:.2g}"


def rows(parts: Parts, vocabulary: int) -> Iterator[list[str]]:
    """Lines of the table."""
    peaks = parts.parts[f"{vocabulary}, memory"]
    rounds = parts.of(f"{vocabulary}, round ")
    plain = [_seconds(one[FULL]) for one in rounds]
    for arm, peak in peaks.items():
        took = [_seconds(one[arm]) for one in rounds]
        gaps = [one[arm]["gaps"] for one in rounds]
        yield [
            str(vocabulary), arm,
            spread([one[arm]["forward"] for one in rounds]),
            spread([one[arm]["backward"] for one in rounds]),
            spread([own / full for own, full in zip(took, plain, strict=True)]),
            f"{peak / 2**20:,.1f}", f"{peak / peaks[FULL]:.3f}",
            *(f"{max(gap[what] for gap in gaps):.0e}" if what in gaps[0] else ""
              for what in ("log p", "hidden grad", "weight grad")),
        ]  # fmt: skip


def _seconds(found: Mapping[str, float]) -> float:
    return found["forward"] + found["backward"]


HEADS = (
    "vocabulary", "head", "forward, CPU-s", "backward, CPU-s", f"times {FULL}", "peak, MiB",
    f"memory, of {FULL}", "log p, nats", "hidden gradient", "weight gradient",
)  # fmt: skip


def goals(parts: Parts, vocabulary: int) -> str:
    """Whether ours reaches them."""
    row = next(one for one in rows(parts, vocabulary) if one[1] == OURS)
    ratio, of_memory = float(row[4].split()[0]), float(row[6])
    said = [
        f"{name} {value:.3g} (at most {most:g}: {'met' if value <= most else 'missed'})"
        for name, value, most in (("memory", of_memory, MOST_MEMORY), ("time", ratio, MOST_TIME))
    ]
    return f"goal at {vocabulary}, {OURS} over {FULL}: {', '.join(said)}"


def imported(names: Sequence[str]) -> tuple[dict[str, Arm], list[str]]:
    """(heads that are here, why the others are not)."""
    here, missing = {}, []
    for name in names:
        try:
            here[name] = ARMS[name]()
        except ImportError as error:
            missing.append(f"{name}: not run: {error}")
    return here, missing


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, tell, check; returns the exit status."""
    asked = parse(argv)
    one_thread()
    arms, missing = imported(asked.arms)
    shape = {"sequences": asked.sequences, "length": asked.length, "hidden": asked.hidden}
    parts = Parts(asked.folder / f"heads{'-quick' if asked.quick else ''}.json",
                  {**shape, "heads": list(arms)}, asked)  # fmt: skip
    todo = []
    for size in asked.vocabularies:
        sizes = (asked.sequences, asked.length, asked.hidden, size)
        todo.append((f"{size}, memory", partial(memory, arms, sizes)))
        todo += [(f"{size}, round {n}", partial(a_round, arms, sizes)) for n in range(asked.rounds)]
    whole = parts.run(todo)
    print(f"\n{parts.heading()}\n")
    measured = [v for v in asked.vocabularies if f"{v}, round 0" in parts.parts]
    print(*markdown(HEADS, [row for v in measured for row in rows(parts, v)]), sep="\n")
    print(*[goals(parts, v) for v in measured if OURS in arms], sep="\n")
    bad = [*missing, *wrong(parts)]
    for line in bad:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if bad else 0 if whole else EXIT_REQUEUE


if __name__ == "__main__":
    sys.exit(main())
