"""The head's measurement, on a CPU and small; what a number stands for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_gdpo.logprobs.measure import measure_head

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.parametrize("into_main_grad", [False, True])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_small_head(columns: int, into_main_grad: bool) -> None:
    """A CPU computes in float32 anyway: only gradients that are returned are rounded."""
    found = measure_head(CPU, 24, 16, 200, columns, into_main_grad=into_main_grad, repeats=2)
    assert (found.tokens, found.hidden, found.vocabulary) == (24, 16, 200)
    assert found.forward_ms > 0
    assert found.backward_ms > 0
    assert found.tflops == pytest.approx(
        4 * 2 * 24 * 16 * 200 / (1e-3 * (found.forward_ms + found.backward_ms)) / 1e12
    )
    assert found.peak_bytes is None
    assert found.label_error < 1e-6
    assert (found.eos_error is None) == (columns == 1)
    # Rounding to 8 bits: 2^-8 at most, a quarter to a half of it on average.
    assert 5e-4 < found.hidden_error < 2.0**-8
    if into_main_grad:
        assert found.weight_error < 1e-6
    else:
        assert 5e-4 < found.weight_error < 2.0**-8


def test_the_command(tmp_path: Path) -> None:
    """Four rows under the numbers to compare with."""
    sizes = ["--tokens", "8", "--hidden", "8", "--vocabulary", "50", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.head", "--device", "cpu", *sizes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {13}
    measured = [line.split("|")[1:4] for line in rows if line.startswith("| cpu")]
    assert [[cell.strip() for cell in line] for line in measured] == [
        ["cpu", "1", "returned"],
        ["cpu", "1", "main gradient"],
        ["cpu", "2", "returned"],
        ["cpu", "2", "main gradient"],
    ]
