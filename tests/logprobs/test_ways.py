"""Which inputs go which way, and what a machine without a GPU does not import."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_gdpo.logprobs.chunked import runs_in_tiles

NARROW, WIDE = torch.bfloat16, torch.float32


def like(dtype: torch.dtype, device: str) -> Any:
    """What is asked of a tensor; `is_cuda` is not, which can be made to lie."""
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize(
    ("hidden", "weight", "device", "tiles"),
    [
        (NARROW, NARROW, "cuda", True),
        (NARROW, NARROW, "cuda:3", True),
        (NARROW, NARROW, "cpu", False),
        (WIDE, WIDE, "cuda", False),
        (NARROW, WIDE, "cuda", False),
        (WIDE, NARROW, "cuda", False),
        (torch.float16, torch.float16, "cuda", False),
        (torch.float64, torch.float64, "cuda", False),
    ],
)
def test_tiles_are_for_bfloat16_on_a_gpu(
    hidden: torch.dtype, weight: torch.dtype, device: str, tiles: bool
) -> None:
    """Whoever asks for float32 gets float32."""
    assert runs_in_tiles(like(hidden, device), like(weight, device)) is tiles


def test_a_cpu_imports_no_triton() -> None:
    code = (
        "import sys, torch; from nemo_gdpo.logprobs import selected_logprobs\n"
        "w = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)\n"
        "selected_logprobs(w[:1], w, torch.tensor([0])).label_T.sum().backward()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'triton']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
