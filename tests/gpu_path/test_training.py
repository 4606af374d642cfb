"""The project's own `train` through Transformer Engine's Python layer."""

from __future__ import annotations

import pytest

from tests.gpu_path.cases import BF16, Case
from tests.gpu_path.conftest import Found


@pytest.mark.parametrize("case", BF16, ids=lambda case: case.key)
def test_bf16_begins_as_the_local_layers_do(case: Case, rehearsed: Found, local: Found) -> None:
    found, single = rehearsed[case.key][0], local[f"{case.model} fp32 plain"][0]
    for side in ("chosen", "rejected"):
        begun, wanted = (run["steps"][0]["pairs"][f"logps/{side}"] for run in (found, single))
        assert begun == pytest.approx(wanted, abs=0.5)
    assert found["calls"]["gemm plain"] > 0
