"""A rehearsal of FP8 is nowhere taken for FP8."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

import nemo_gdpo
from nemo_gdpo.config.schema import Precision
from nemo_gdpo.config.shapes import Multiples, fp8_multiples
from nemo_gdpo.plan.hardware import DEVICES
from nemo_gdpo.plan.speed import share_of_peak
from nemo_gdpo.precisions import FP8_RECIPES, REHEARSALS, arithmetic, described, in_fp8
from nemo_gdpo.training.throughput import peak_tflops

H100 = "NVIDIA H100 80GB HBM3"


def test_every_precision_is_one_of_these() -> None:
    assert set(get_args(Precision)) == {"fp32", "bf16", *FP8_RECIPES, *REHEARSALS}


@pytest.mark.parametrize("precision", REHEARSALS)
def test_a_rehearsal_is_no_fp8(precision: str) -> None:
    assert not in_fp8(precision)
    assert arithmetic(precision) == "fp32"
    assert "FP8 rehearsal" in described(precision)
    assert "not FP8 on hardware" in described(precision)
    assert fp8_multiples(precision, sequence_parallel=True) == Multiples()
    assert peak_tflops(H100, precision) == peak_tflops(H100, "fp32")
    assert all(device.peak.of(precision) == device.peak.fp32 for device in DEVICES)
    assert share_of_peak(precision) != share_of_peak("fp8_tensorwise")


@pytest.mark.parametrize("precision", ["fp32", "bf16", *FP8_RECIPES])
def test_everything_else_is_what_it_is_called(precision: str) -> None:
    assert in_fp8(precision) is precision.startswith("fp8_")
    assert arithmetic(precision) == described(precision) == precision


def test_no_code_goes_by_how_a_precision_begins() -> None:
    """`startswith("fp8")` is true of a rehearsal, too."""
    root = Path(nemo_gdpo.__file__).parent
    pattern = re.compile(r"""startswith\(["']fp8|["']fp8_["'] in""")
    assert [p for p in root.rglob("*.py") if pattern.search(p.read_text())] == []
