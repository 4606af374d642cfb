"""Time, memory and error of the head on one device.

Memory is what the head needs above its inputs, the gradients that it returns included; of these the
weight's takes V x H x 2 bytes, or nothing where it is added to a main gradient, which is there
anyway. What cuBLAS keeps for itself is allocated before and does not count.

Errors are against the same numbers in float32, by `wide.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from nemo_gdpo.logprobs.chunked import selected_logprobs
from nemo_gdpo.logprobs.main_grad import MainGrad
from nemo_gdpo.logprobs.types import SelectedLogprobs

EOS_ID = 1
WARM_UP = 2
"""Runs that compile kernels and choose GEMMs."""


@dataclass(frozen=True)
class HeadMeasurement:
    """One measurement, bfloat16 inputs."""

    device: str
    tokens: int
    hidden: int
    vocabulary: int
    columns: int
    """1: labels; 2: EOS too."""
    into_main_grad: bool
    forward_ms: float
    backward_ms: float
    peak_bytes: int | None
    """None on a CPU, which does not count."""
    label_error: float
    """Largest difference of a log-prob, nats."""
    eos_error: float | None
    hidden_error: float
    """Norm of the gradient's difference over the gradient's norm."""
    weight_error: float

    @property
    def total_ms(self) -> float:
        return self.forward_ms + self.backward_ms

    @property
    def tflops(self) -> float:
        """10^12 operations a second of the four products, in both passes together."""
        return 8e-9 * self.tokens * self.hidden * self.vocabulary / self.total_ms


def measure_head(
    device: torch.device,
    tokens: int = 8192,
    hidden: int = 4096,
    vocabulary: int = 131072,
    columns: int = 2,
    *,
    into_main_grad: bool = False,
    repeats: int = 10,
) -> HeadMeasurement:
    """Median of `repeats` runs, forward and backward, on random numbers.

    Args:
        columns: 1 for labels alone, 2 with EOS.
        into_main_grad: add the weight's gradient to a float32 buffer, as under Megatron's DDP.
    """
    inputs = _Inputs.random(device, tokens, hidden, vocabulary, columns)
    if into_main_grad:
        total_VH = torch.zeros_like(inputs.weight_VH, dtype=torch.float32)
        vars(inputs.weight_VH).update(main_grad=total_VH, grad_added_to_main_grad=False)
    times = [inputs.run() for _ in range(WARM_UP + repeats)][WARM_UP:]
    inputs.forget()
    peak = _peak_bytes(device, inputs.run)
    return HeadMeasurement(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        tokens=tokens,
        hidden=hidden,
        vocabulary=vocabulary,
        columns=columns,
        into_main_grad=into_main_grad,
        forward_ms=1e3 * median(forward for forward, _ in times),
        backward_ms=1e3 * median(backward for _, backward in times),
        peak_bytes=peak,
        **inputs.errors(),
    )


@dataclass(frozen=True)
class _Inputs:
    hidden_TH: Tensor
    weight_VH: Tensor
    labels_T: Tensor
    factors_CT: Tensor
    """The loss is the sum of the columns' log-probs times these."""

    @classmethod
    def random(
        cls, device: torch.device, tokens: int, hidden: int, vocabulary: int, columns: int
    ) -> _Inputs:
        """Logits with a deviation of about 2, from the same numbers each time."""
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        return cls(
            draw(tokens, hidden).bfloat16().requires_grad_(),
            nn.Parameter((2.0 / hidden**0.5 * draw(vocabulary, hidden)).bfloat16()),
            torch.randint(vocabulary, (tokens,), generator=generator, device=device),
            draw(columns, tokens),
        )

    def score(self, hidden_TH: Tensor, weight_VH: Tensor) -> tuple[SelectedLogprobs, Tensor]:
        """(columns, loss)."""
        result = selected_logprobs(
            hidden_TH,
            weight_VH,
            self.labels_T,
            eos_id=EOS_ID if len(self.factors_CT) > 1 else None,
            main_grad=MainGrad.of(weight_VH),
        )
        values_CT = torch.stack([c for c in result[:2] if c is not None])
        return result, (values_CT * self.factors_CT).sum()

    def forget(self) -> None:
        """Drop the last gradients."""
        self.hidden_TH.grad = self.weight_VH.grad = None

    def run(self) -> tuple[float, float]:
        """Seconds forward and backward."""
        self.forget()
        clock = _cuda_seconds if self.hidden_TH.device.type == "cuda" else _seconds
        found: list[Tensor] = []
        forward = clock(lambda: found.append(self.score(self.hidden_TH, self.weight_VH)[1]))
        return forward, clock(found[0].backward)

    def errors(self) -> dict[str, Any]:
        """The fields of `HeadMeasurement` that compare with float32."""
        wide_TH = self.hidden_TH.detach().float().requires_grad_()
        wide_VH = self.weight_VH.detach().float().requires_grad_()
        total_VH = vars(self.weight_VH).get("main_grad")
        if total_VH is not None:
            total_VH.zero_()
        self.run()
        narrow = self.score(self.hidden_TH, self.weight_VH)[0]
        with _full_float32():
            wide, loss = self.score(wide_TH, wide_VH)
            loss.backward()  # type: ignore[no-untyped-call]
        weight_grad = self.weight_VH.grad if total_VH is None else total_VH
        return {
            "label_error": _largest(narrow.label_T, wide.label_T),
            "eos_error": None if wide.eos_T is None else _largest(narrow.eos_T, wide.eos_T),
            "hidden_error": _relative(self.hidden_TH.grad, wide_TH.grad),
            "weight_error": _relative(weight_grad, wide_VH.grad),
        }


def _largest(one: Tensor | None, other: Tensor) -> float:
    assert one is not None
    return float((one - other).detach().abs().max())


def _relative(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None
    assert other is not None
    return float((one.float() - other).norm() / other.norm())


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cuda_seconds(work: Callable[[], Any]) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * float(start.elapsed_time(end))


def _peak_bytes(device: torch.device, work: Callable[[], Any]) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _full_float32() -> Iterator[None]:
    """float32 products in float32, whatever the environment allows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
