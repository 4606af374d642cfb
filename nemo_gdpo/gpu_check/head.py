"""The head at the size of an 8B model: time, memory and error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from nemo_gdpo.gpu_check.findings import Measurement, NotHereError


def kernel_speed(folder: Path) -> Iterator[Measurement]:
    """8,192 tokens, hidden 4,096, vocabulary 131,072, bf16, with one and two columns."""
    del folder
    if not torch.cuda.is_available():
        raise NotHereError("torch sees no GPU")
    raise NotImplementedError
