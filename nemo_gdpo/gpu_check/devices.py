"""What the GPUs are, and whether they can talk to each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_gdpo.gpu_check.findings import Measurement, NotHereError, at_least, at_most
from nemo_gdpo.platform import current_platform, detect_capabilities
from nemo_gdpo.training.mesh import join_world

GEMM = 8192
"""Side of the matrix product, in elements: far beyond the size from which the rate is flat."""
BUSY = 1 << 28
"""Elements of the array that is copied and reduced: 512 MiB in bf16."""


def seconds_of(action: Callable[[], object], *, repeat: int = 5) -> float:
    """Median seconds of one call on the GPU, after two warm-ups."""
    times: list[float] = []
    for turn in range(repeat + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        if turn >= 2:
            times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def inventory(folder: Path) -> Iterator[Measurement]:
    """Each GPU, its memory, the rate of a bf16 matrix product, the bandwidth of a copy."""
    del folder
    if not torch.cuda.is_available():
        raise NotHereError("torch sees no GPU")
    capabilities = detect_capabilities()
    yield Measurement("Transformer Engine", capabilities.transformer_engine.reason or "usable")
    yield Measurement("precisions", ", ".join(sorted(capabilities.precisions)))
    version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    yield Measurement("NCCL", ".".join(map(str, version)))
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            name = f"GPU {index}"
            yield Measurement(name, torch.cuda.get_device_name(index))
            capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
            yield Measurement(f"{name} compute capability", capability)
            # Other processes on the GPU make every further number worthless.
            yield at_least(f"{name} free memory", free / total, 0.95)
            yield Measurement(f"{name} memory", total / 2**30, "GiB")
            yield Measurement(f"{name} bf16 product", _product_rate() / 1e12, "TFLOP/s")
            yield Measurement(f"{name} copy", _copy_rate() / 1e12, "TB/s")


def _product_rate() -> float:
    a, b = (torch.randn(GEMM, GEMM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * GEMM**3 / seconds_of(lambda: a @ b)


def _copy_rate() -> float:
    source = torch.empty(BUSY, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 4 * BUSY / seconds_of(lambda: target.copy_(source))


def collectives(folder: Path) -> Iterator[Measurement]:
    """A sum over all GPUs: its value, and the bandwidth of the links."""
    del folder
    platform = current_platform()
    join_world(platform)
    device = platform.device(int(os.environ["LOCAL_RANK"]))
    size, rank = dist.get_world_size(), dist.get_rank()
    values = torch.full((1024,), float(rank + 1), device=device)
    dist.all_reduce(values)
    expected = size * (size + 1) / 2
    yield at_most("error of a sum", float((values - expected).abs().max()), 0.0)
    yield Measurement("ranks", size)
    if size > 1:
        yield Measurement("all-reduce", _bus_rate(device, size) / 1e9, "GB/s a rank")


def _bus_rate(device: torch.device, size: int) -> float:
    """Bytes a second that each rank sends, as nccl-tests counts them: 2 (n - 1) / n times."""
    values = torch.ones(BUSY, device=device, dtype=torch.bfloat16)
    for turn in range(6):
        if turn == 1:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        dist.all_reduce(values)
    torch.cuda.synchronize()
    return 2 * (size - 1) / size * 2 * BUSY * 5 / (time.perf_counter() - begun)
