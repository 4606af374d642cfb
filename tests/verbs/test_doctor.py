"""`doctor` on machines that are not at hand."""

from __future__ import annotations

import pytest

from nemo_gdpo import cli
from nemo_gdpo.errors import EXIT_FAILED
from nemo_gdpo.platform import select
from nemo_gdpo.platform.base import Support
from nemo_gdpo.platform.capabilities import capabilities_of
from nemo_gdpo.platform.machine import USABLE, Machine, Package
from nemo_gdpo.verbs.doctor import training_rows

HOPPER = Machine(
    gpus=8,
    compute_capability=(9, 0),
    transformer_engine=USABLE,
    fp8={
        "fp8_tensorwise": Support(True),
        "fp8_blockwise": Support(True),
        "fp8_mxfp8": Support(False, "Device compute capability 10.0 or higher required"),
    },
    flash_attention=Support(True),
)


def test_hopper() -> None:
    rows = dict(training_rows(capabilities_of(HOPPER)))
    assert rows["layers in bf16"] == "transformer_engine"
    assert rows["layers in fp32"] == "local (Transformer Engine multiplies fp32 in TF32)"
    assert rows["attention fused"] == "yes"
    assert rows["gradient fusion"].startswith("no: NVIDIA Apex's extension")
    assert rows["base in nf4"].endswith("install nemo_gdpo with the extra qlora")
    assert rows["optimizer"] == "Transformer Engine FusedAdam"
    assert "fp8_blockwise" in rows["precisions"]
    assert rows["  fp8_mxfp8"].endswith("Device compute capability 10.0 or higher required")


def test_a_gpu_without_transformer_engine() -> None:
    rows = dict(training_rows(capabilities_of(Machine(gpus=1, compute_capability=(9, 0)))))
    assert rows["layers in bf16"].startswith("none: model.layers: Transformer Engine is not inst")
    assert "set it to local" in rows["layers in bf16"]


def test_a_broken_environment_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Package(True, "OSError: libcublasLt.so.13: undefined symbol")
    found = capabilities_of(Machine(gpus=1, compute_capability=(9, 0), transformer_engine=broken))
    monkeypatch.setattr(select, "detect_capabilities", lambda: found)
    assert cli.main(["doctor"]) == EXIT_FAILED
    out = capsys.readouterr().out
    assert "training             impossible: model.layers: Transformer Engine is installed" in out
    assert "undefined symbol" in out
