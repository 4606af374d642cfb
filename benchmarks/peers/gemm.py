"""The rate of a process's own matrix products, of a model's shapes: the floor under a step's time.

Shapes: T tokens, I inputs, O outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from nemo_gdpo.conversion.model_config import MegatronModelConfig

ROWS, REPEATS = 512, 3


@dataclass(frozen=True)
class Matrix:
    """One matrix of the model, and how many of its kind a token meets."""

    inputs: int
    outputs: int
    times: float


def matrices(model: MegatronModelConfig, labels: float) -> Iterator[Matrix]:
    """Of all layers, and the head.

    Args:
        model: a gated decoder.
        labels: share of the tokens at which the head is computed.
    """
    hidden, ffn, layers = model.hidden_size, model.ffn_hidden_size, model.num_layers
    yield Matrix(hidden, model.query_size + 2 * model.key_value_size, layers)
    yield Matrix(model.query_size, hidden, layers)
    yield Matrix(hidden, 2 * ffn, layers)
    yield Matrix(ffn, hidden, layers)
    yield Matrix(hidden, model.vocab_size, labels)


def flops_a_second(
    model: MegatronModelConfig, labels: float, dtype: torch.dtype, clock: Callable[[], float]
) -> float:
    """Products forward and backward, all shapes by their share of the model's FLOPs.

    Args:
        model: whose shapes they have.
        labels: as in `matrices`.
        dtype: of the operands.
        clock: seconds, when the device has done what was asked of it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flops = seconds = 0.0
    for one in matrices(model, labels):
        flops += one.times * 3 * 2 * ROWS * one.inputs * one.outputs
        seconds += one.times * _seconds(one, dtype, device, clock)
    return flops / seconds


def _seconds(one: Matrix, dtype: torch.dtype, device: str, clock: Callable[[], float]) -> float:
    """Median of a forward product and the two of the gradients; the first run does not count."""
    made: dict[str, Any] = {"dtype": dtype, "device": device}
    input_TI = torch.ones(ROWS, one.inputs, **made)
    weight_OI = torch.full((one.outputs, one.inputs), 1 / one.inputs, **made)
    output_TO = torch.empty(ROWS, one.outputs, **made)
    grad_TI, grad_OI = torch.empty_like(input_TI), torch.empty_like(weight_OI)
    took = []
    for _ in range(1 + REPEATS):
        begun = clock()
        torch.mm(input_TI, weight_OI.T, out=output_TO)
        torch.mm(output_TO, weight_OI, out=grad_TI)
        torch.mm(output_TO.T, input_TI, out=grad_OI)
        took.append(clock() - begun)
    return median(took[1:])
