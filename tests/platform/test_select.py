"""What the machine is found to have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemo_gdpo.platform import select
from nemo_gdpo.platform.base import Capabilities, Support
from nemo_gdpo.platform.cuda import CudaPlatform


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "is not installed"),
        ("raise ImportError('libcudart.so.12: no such file\\nand more')", "libcudart.so.12: no"),
        ("import a_module_that_is_nowhere", "a_module_that_is_nowhere"),
        ("", ""),
    ],
    ids=["absent", "broken", "incomplete", "there"],
)
def test_gradient_fusion_needs_the_extension_itself(
    source: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = select.GRADIENT_FUSION_MODULE
    monkeypatch.syspath_prepend(tmp_path)
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)
    found = select._gradient_fusion()
    sys.modules.pop(name, None)
    assert found.ok is (source == "")
    assert reason in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize("fusion", [True, False])
def test_gradient_fusion_is_asked_for_where_megatron_can_do_it(fusion: bool) -> None:
    """Transformer Engine and Apex's optimizers do not prove it: the model could not be built."""
    capabilities = Capabilities("cuda", True, True, frozenset({"bf16"}), Support(fusion))
    overrides = CudaPlatform(capabilities).transformer_config_overrides("bf16", interleaved=False)
    assert overrides["gradient_accumulation_fusion"] is fusion
