"""A run against what the local layers do; and the table of all runs.

How far two right runs may differ is taken from the local layers themselves: the root mean square of
what bfloat16 changes in their log-probs at step 0, against float32. FP8 keeps 4 significant bits
where bfloat16 keeps 8, so that its rounding is 16 times as coarse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.gpu_path.cases import Case
from tests.gpu_path.launch import Found

SIDES = ("chosen", "rejected")
NOISE = {"bf16": 4.0}
"""Precision -> how many times the local layers' own bfloat16 error a run may be off."""
FP8_NOISE = 16.0
Step = dict[str, Any]


def logps(step: Step, whose: str = "logps") -> list[float]:
    """Log-probs of the pairs of one update, chosen then rejected."""
    return [value for side in SIDES for value in step["pairs"][f"{whose}/{side}"]]


def root_mean_square(ones: Sequence[float], others: Sequence[float]) -> float:
    """Of the differences."""
    squares = [(one - other) ** 2 for one, other in zip(ones, others, strict=True)]
    return math.sqrt(sum(squares) / len(squares))


@dataclass(frozen=True)
class Comparison:
    """One run against the local layers of the same model."""

    step0_gap: float
    """Largest difference of a pair's log-prob under policy and reference, nats."""
    error: float
    """Root mean square of the log-probs at step 0 against float32, nats."""
    local_error: float
    """The same of the local layers in bfloat16."""
    losses: list[tuple[float, float]]
    """(this run, local layers in bfloat16) by step."""
    grad_norms: list[tuple[float, float]]

    @property
    def loss_gap(self) -> float:
        """Largest relative difference of a loss."""
        return max(abs(one / other - 1) for one, other in self.losses)

    @property
    def grad_norm_gap(self) -> float:
        """Largest relative difference of a gradient norm."""
        return max(abs(one / other - 1) for one, other in self.grad_norms)

    def allowed(self, times: float) -> float:
        """Relative difference of losses and norms that `times` the local error explains.

        The default objective squares a log-ratio r, which is the root of the loss: an error e of r
        moves the loss by 2 r e, and the gradient by less.
        """
        return max(2 * times * self.local_error / math.sqrt(other) for _, other in self.losses)


def compare(case: Case, rehearsed: Found, local: Found) -> Comparison:
    """A case against the local layers in bfloat16 and in float32."""
    steps = rehearsed[case.key][0]["steps"]
    exact, half = (local[f"{case.model} {kind} plain"][0]["steps"] for kind in ("fp32", "bf16"))
    first = steps[0]
    gaps = zip(logps(first), logps(first, "reference_logps"), strict=True)
    return Comparison(
        step0_gap=max(abs(policy - reference) for policy, reference in gaps),
        error=root_mean_square(logps(first), logps(exact[0])),
        local_error=root_mean_square(logps(half[0]), logps(exact[0])),
        losses=[(a["loss"], b["loss"]) for a, b in zip(steps, half, strict=True)],
        grad_norms=[(a["grad_norm"], b["grad_norm"]) for a, b in zip(steps, half, strict=True)],
    )


def table(cases: Sequence[Case], rehearsed: Found, local: Found) -> str:
    """A row for each case."""
    head = (
        f"{'case':42} {'step-0 gap':>10} {'error':>7} {'loss':>7} {'norm':>7}  calls of rank 0\n"
        f"{'':42} {'nats':>10} {'nats':>7} {'gap':>7} {'gap':>7}"
    )
    lines = [head]
    for case in cases:
        found = compare(case, rehearsed, local)
        calls = rehearsed[case.key][0]["calls"]
        told = ", ".join(
            f"{name} {count}" for name, count in sorted(calls.items()) if "gemm" in name
        )
        quantised = sum(count for name, count in calls.items() if name.startswith("quantize"))
        told += f", quantize {quantised}, {sum(calls.values())} in all"
        lines.append(
            f"{case.key:42} {found.step0_gap:10.4f} {found.error:7.3f} {found.loss_gap:7.4f} "
            f"{found.grad_norm_gap:7.4f}  {told}"
        )
    return "\n".join(lines)
