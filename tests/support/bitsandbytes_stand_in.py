"""What a base in four bits calls of bitsandbytes, in plain torch: the package is in no lock.

Parameters and defaults are those of bitsandbytes 0.50.2 (bitsandbytes/functional.py); `SIGNATURES`
has them for comparison with one that is installed. As there, FP4 is the default, which this lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType

import torch
from torch import Tensor

SIGNATURES = {
    "quantize_4bit": [
        "A", "absmax", "out", "blocksize", "compress_statistics", "quant_type", "quant_storage",
    ],
    "dequantize_4bit": ["A", "quant_state", "absmax", "out", "blocksize", "quant_type"],
}  # fmt: skip


def _quantiles(number: int) -> Tensor:
    """Of the normal distribution above its middle; from the outermost on."""
    shares = torch.linspace(0.9677083, 0.5, number + 1)[:-1].double()
    values: Tensor = torch.special.ndtri(shares).float()
    return values


# As bitsandbytes' create_normal_map: eight above zero, seven below it.
_VALUES = torch.cat([-_quantiles(7), torch.zeros(1), _quantiles(8).flip(0)])
_VALUES /= _VALUES.max()


@dataclass
class QuantState:
    """What `dequantize_4bit` needs besides the packed numbers."""

    absmax: Tensor
    shape: torch.Size
    dtype: torch.dtype
    blocksize: int
    quant_type: str


def quantize_4bit(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """Blocks over the numbers as they lie in memory; an even one is in the upper half of a byte."""
    assert absmax is None and out is None and not compress_statistics
    assert quant_type == "nf4" and quant_storage is torch.uint8
    size = blocksize or 64
    assert A.is_contiguous() and A.numel() % size == 0
    blocks = A.float().reshape(-1, size)
    most = blocks.abs().amax(dim=1)
    scaled = blocks / torch.where(most > 0, most, 1.0)[:, None]
    edges = (_VALUES[1:] + _VALUES[:-1]) / 2
    codes = torch.bucketize(scaled, edges).to(torch.uint8).reshape(-1, 2)
    packed = (codes[:, :1] << 4) | codes[:, 1:]
    return packed, QuantState(most, A.shape, A.dtype, size, quant_type)


def dequantize_4bit(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    quant_type: str = "fp4",
) -> Tensor:
    """The numbers in the type that they had."""
    assert quant_state is not None and absmax is None and out is None
    codes = torch.cat([A >> 4, A & 15], dim=1).reshape(-1, quant_state.blocksize)
    numbers = _VALUES[codes.int()] * quant_state.absmax[:, None]
    return numbers.reshape(quant_state.shape).to(quant_state.dtype)


def modules() -> dict[str, ModuleType]:
    """For `sys.modules`; none where bitsandbytes is installed."""
    if find_spec("bitsandbytes") is not None:
        return {}
    names = ("bitsandbytes", "bitsandbytes.functional")
    package, functional = (module_from_spec(ModuleSpec(name, None)) for name in names)
    vars(functional).update(quantize_4bit=quantize_4bit, dequantize_4bit=dequantize_4bit)
    vars(package)["functional"] = functional
    return dict(zip(names, (package, functional), strict=True))
