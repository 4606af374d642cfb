"""The CUDA platform, as far as no GPU is needed for it."""

from __future__ import annotations

import os

import pytest
import torch

from nemo_gdpo.errors import UserError
from nemo_gdpo.platform.cuda import TF32_VARIABLES, device_index
from nemo_gdpo.platform.machine import ABSENT, USABLE, Package
from tests.platform.machines import cuda_platform


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"), [(0, 8, 0), (7, 8, 7), (0, 1, 0), (3, 1, 0), (1, 2, 1)]
)
def test_a_rank_takes_its_own_gpu_or_the_only_one(
    local_rank: int, visible: int, index: int
) -> None:
    """srun --gpus-per-task=1 shows one to each task, which is number 0 in all of them."""
    assert device_index(local_rank, visible, {}) == index


@pytest.mark.parametrize(("local_rank", "visible"), [(8, 8), (2, 2), (5, 3)])
def test_a_rank_without_a_gpu_is_told_so(local_rank: int, visible: int) -> None:
    told = f"LOCAL_RANK={local_rank}: this process can see {visible} GPUs"
    with pytest.raises(UserError, match=told + r" \(CUDA_VISIBLE_DEVICES=0,3\)"):
        device_index(local_rank, visible, {"CUDA_VISIBLE_DEVICES": "0,3"})
    with pytest.raises(UserError, match=told + r" \(CUDA_VISIBLE_DEVICES is not set\)"):
        device_index(local_rank, visible, {})


@pytest.mark.parametrize("fusion", [USABLE, ABSENT, Package(True, "ImportError: libc10.so")])
def test_gradient_fusion_is_asked_for_where_megatron_can_do_it(fusion: Package) -> None:
    platform = cuda_platform(gradient_fusion=fusion)
    overrides = platform.transformer_config_overrides(
        "bf16", interleaved=False, layers="transformer_engine"
    )
    assert overrides["gradient_accumulation_fusion"] is fusion.usable


@pytest.mark.parametrize("name", TF32_VARIABLES)
@pytest.mark.parametrize(
    ("value", "lines"), [("1", 1), ("0", 0), ("", 0), (None, 0)], ids=["on", "off", "empty", "not"]
)
def test_tf32_is_switched_off_and_said(
    name: str, value: str | None, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in TF32_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")  # as torch's variable has it at the start
        torch.backends.cudnn.allow_tf32 = True
        said = cuda_platform().settle_arithmetic()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    told = f"{name}=1 is not followed: fp32 is multiplied in fp32, not in TF32"
    assert said == [told] * lines
    assert os.environ.get(name) in (None, "", "0")


def test_fp8_leaves_the_first_and_the_last_layer_in_bf16() -> None:
    platform = cuda_platform()
    te = {"interleaved": False, "layers": "transformer_engine"}
    fields = platform.transformer_config_overrides("fp8_tensorwise", **te)  # type: ignore[arg-type]
    assert fields["first_last_layers_bf16"]
    assert fields["num_layers_at_start_in_bf16"] == fields["num_layers_at_end_in_bf16"] == 1
