"""Which layers a run is built of, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer.enums import AttnBackend

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.errors import UserError
from nemo_gdpo.models import builder
from nemo_gdpo.models.attention import CoreAttention
from nemo_gdpo.models.builder import ParallelLayout, transformer_config
from nemo_gdpo.platform.base import Finding
from nemo_gdpo.platform.capabilities import capabilities_of
from nemo_gdpo.platform.layers import choose_layers, layers_for, recompute_modules
from nemo_gdpo.platform.machine import Machine
from nemo_gdpo.platform.select import platform_for
from tests.models.megatron_parts import MODEL
from tests.platform.machines import (
    broken_engine,
    cuda_platform,
    machine,
    without_engine,
    without_gpu,
)

TE, LOCAL = "transformer_engine", "local"


@pytest.mark.parametrize(
    ("found", "asked", "precision", "layers"),
    [
        (machine(), "auto", "bf16", TE),
        (machine(), TE, "bf16", TE),
        (machine(), "auto", "fp8_tensorwise", TE),
        (machine(), LOCAL, "bf16", LOCAL),
        # Transformer Engine has no other mode than TF32 for fp32.
        (machine(), "auto", "fp32", LOCAL),
        (without_engine(), "auto", "fp32", LOCAL),
        (without_engine(), LOCAL, "bf16", LOCAL),
        (without_gpu(), "auto", "fp32", LOCAL),
        (without_gpu(), "auto", "bf16", LOCAL),
        (without_gpu(), LOCAL, "fp32", LOCAL),
        # What is rounded are their products.
        (machine(), "auto", "fp8_rehearsal_blockwise", LOCAL),
        (without_engine(), "auto", "fp8_rehearsal_tensorwise", LOCAL),
        (without_gpu(), LOCAL, "fp8_rehearsal_delayed", LOCAL),
    ],
)
def test_layers(found: Machine, asked: str, precision: str, layers: str) -> None:
    assert layers_for(asked, precision, capabilities_of(found)) == layers


@pytest.mark.parametrize(
    ("found", "asked", "precision", "told"),
    [
        (without_engine(), "auto", "bf16", "Transformer Engine is not installed; install the gpu"),
        (without_engine(), TE, "bf16", "Transformer Engine is not installed; install the gpu"),
        (broken_engine(), "auto", "bf16", "does not import (ImportError: libcudnn.so.9"),
        (broken_engine(), LOCAL, "bf16", "does not import (ImportError: libcudnn.so.9"),
        (broken_engine(), "auto", "fp32", "does not import (ImportError: libcudnn.so.9"),
        (without_gpu(), TE, "bf16", "needs a GPU, and this machine has none; set it to auto"),
        (machine(), TE, "fp32", "Transformer Engine multiplies fp32 in TF32, with 10 bits"),
        (machine(), LOCAL, "fp8_blockwise", "train unquantised without a word"),
        (machine(), TE, "fp8_rehearsal_blockwise", "rounds the operands of the local layers"),
    ],
)
def test_refused_layers(found: Machine, asked: str, precision: str, told: str) -> None:
    """Above all: a GPU never trains on the local layers because something is missing."""
    with pytest.raises(UserError, match=r"model\.layers: ") as caught:
        layers_for(asked, precision, capabilities_of(found))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_choice_says_why_not_the_other() -> None:
    on_cpu = choose_layers("auto", "fp32", capabilities_of(without_gpu()))
    assert on_cpu == Finding(LOCAL, "Transformer Engine needs a GPU, and this machine has none")
    in_fp32 = choose_layers("auto", "fp32", capabilities_of(machine()))
    assert in_fp32 == Finding(LOCAL, "Transformer Engine multiplies fp32 in TF32")
    assert isinstance(choose_layers("auto", "bf16", capabilities_of(without_engine())), Problem)


def test_a_broken_environment_gives_no_platform() -> None:
    """megatron-core would fail inside its imports, or go on without Transformer Engine."""
    with pytest.raises(UserError, match=r"libcudnn\.so\.9"):
        platform_for(capabilities_of(broken_engine()))


@pytest.mark.parametrize(
    ("layers", "backend", "softcap", "modules"),
    [
        (LOCAL, "auto", False, ["core_attn"]),
        (TE, "auto", False, ["mlp"]),
        (TE, "flash", False, ["mlp"]),
        (TE, "fused", False, ["mlp"]),
        (TE, "local", False, ["mlp"]),
        (TE, "unfused", False, ["core_attn"]),
        (TE, "auto", True, ["core_attn"]),
        (TE, "local", True, ["core_attn"]),
    ],
)
def test_selective_recomputation_takes_what_holds_memory(
    layers: str, backend: str, softcap: bool, modules: list[str]
) -> None:
    assert recompute_modules(layers, backend, softcap=softcap) == modules


def _config(precision: str, **layout: Any) -> Any:
    return transformer_config(MODEL, ParallelLayout(**layout), precision, cuda_platform())


def test_megatron_is_told_layers_back_end_and_recomputation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # TransformerConfig asks for Transformer Engine's kernel, which is not installed here.
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", object())
    config = _config("bf16", recompute="selective", attention_backend="flash")
    assert config.transformer_impl == TE
    assert config.attention_backend is AttnBackend.flash
    assert config.recompute_modules == ["mlp"]
    assert config.apply_rope_fusion


def test_fp32_on_a_gpu_is_local_throughout_and_context_parallel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Transformer Engine has no attention for fp32 with context parallelism; ours does it."""
    config = _config("fp32", context=2)
    assert config.transformer_impl == LOCAL
    assert not config.apply_rope_fusion
    assert not config.gradient_accumulation_fusion
    monkeypatch.setattr(builder, "get_num_layers_to_build", lambda config, vp_stage: 2)
    layer = builder.layer_spec(MODEL, config, None).layer_specs[0]
    assert layer.submodules.self_attention.submodules.core_attention is CoreAttention
