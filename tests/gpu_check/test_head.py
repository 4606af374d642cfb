"""The rows of the head's stage, from a measurement on a CPU."""

from __future__ import annotations

import torch

from nemo_gdpo.gpu_check.head import rows
from nemo_gdpo.logprobs.measure import measure_head


def test_rows() -> None:
    found = measure_head(torch.device("cpu"), 64, 32, 256, 2, repeats=1)
    measured = {row.name: row for row in rows("small", found)}
    assert measured["small: both"].value == found.forward_ms + found.backward_ms
    assert "small: memory" not in measured  # a CPU does not count
    assert all(row.ok for row in measured.values()), measured
    assert measured["small: error of EOS"].limit == "<= 0.001"
