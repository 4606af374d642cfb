"""The head at the size of an 8B model: time, memory and error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from nemo_gdpo.gpu_check.findings import Measurement, NotHereError, at_most
from nemo_gdpo.logprobs.measure import HeadMeasurement, measure_head

LOGP_LIMIT = 1e-3
"""Nats: bf16 inputs are exact in fp32, but tensor cores may sum with fewer bits than fp32 has."""
GRADIENT_LIMIT = 4e-3
"""Of a gradient's norm; rounding a result to bf16 alone costs 1.7e-3."""


def kernel_speed(folder: Path) -> Iterator[Measurement]:
    """8,192 tokens, hidden 4,096, vocabulary 131,072, bf16, with one and two columns."""
    del folder
    if not torch.cuda.is_available():
        raise NotHereError("torch sees no GPU")
    device = torch.device("cuda", 0)
    yield from rows("one column", measure_head(device, columns=1))
    yield from rows("two columns", measure_head(device, columns=2))
    yield from rows("main gradient", measure_head(device, columns=2, into_main_grad=True))


def rows(name: str, found: HeadMeasurement) -> Iterator[Measurement]:
    """Times are told, errors judged."""
    yield Measurement(f"{name}: forward", found.forward_ms, "ms")
    yield Measurement(f"{name}: backward", found.backward_ms, "ms")
    yield Measurement(f"{name}: both", found.total_ms, "ms")
    yield Measurement(f"{name}: arithmetic", found.tflops, "TFLOP/s")
    if found.peak_bytes is not None:
        yield Measurement(f"{name}: memory", found.peak_bytes / 2**30, "GiB")
    yield at_most(f"{name}: error of the label", found.label_error, LOGP_LIMIT, "nats")
    if found.eos_error is not None:
        yield at_most(f"{name}: error of EOS", found.eos_error, LOGP_LIMIT, "nats")
    yield at_most(f"{name}: error of the hidden gradient", found.hidden_error, GRADIENT_LIMIT)
    yield at_most(f"{name}: error of the weight gradient", found.weight_error, GRADIENT_LIMIT)
