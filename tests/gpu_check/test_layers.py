"""The stages that compare trainings, with what a CPU has: local layers in fp32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_gdpo.gpu_check.watched import Watched


def _steps(*losses: float) -> list[dict[str, float]]:
    return [
        {"step": i, "loss": x, "grad_norm": 1.0, "logps/chosen": -3.0, "logps/rejected": -4.0}
        for i, x in enumerate(losses)
    ]


def _first(chosen: list[float], reference: list[float]) -> dict[str, torch.Tensor]:
    return {
        "logps/chosen": torch.tensor(chosen, dtype=torch.float64),
        "logps/rejected": torch.zeros(len(chosen), dtype=torch.float64),
        "reference_logps/chosen": torch.tensor(reference, dtype=torch.float64),
        "reference_logps/rejected": torch.zeros(len(chosen), dtype=torch.float64),
    }


def test_gaps_by_hand() -> None:
    one = Watched(_first([-1.0, -2.0], [-1.0, -2.25]), _steps(2.0, 1.0))
    other = Watched(_first([-1.5, -2.0], [-1.0, -2.0]), _steps(2.0, 1.25))
    assert one.step0_gap() == 0.25
    assert one.logp_gap(other) == 0.5
    assert one.drift(other) == pytest.approx(0.2)
    assert one.drift(other, first_step=1) == pytest.approx(0.2)
    assert (
        Watched({}, _steps(2.0, 1.0)).drift(
            Watched({}, _steps(2.0, 9.0)[:1] + _steps(2.0, 1.0)[1:])
        )
        == 0.0
    )


def _run_stage(name: str, folder: Path) -> dict[str, object]:
    import json

    folder.mkdir()
    command = [sys.executable, "-m", "nemo_gdpo.gpu_check.stage", name, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, object] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.slow
def test_the_numbers_of_a_cpu_are_still_those_of_this_code(tmp_path: Path) -> None:
    result = _run_stage("fp32", tmp_path / "fp32")
    assert result["status"] == "passed", result
    measurements = result["measurements"]
    assert isinstance(measurements, list) and len(measurements) == 4
    # Another processor may round otherwise; this one wrote 1e-7 and less.
    assert max(row["value"] for row in measurements) < 2e-5


@pytest.mark.slow
def test_stages_for_a_gpu_say_why_they_do_not_apply(tmp_path: Path) -> None:
    result = _run_stage("layers", tmp_path / "layers")
    assert result["status"] == "not here"
    assert "Transformer Engine" in str(result["reason"])
