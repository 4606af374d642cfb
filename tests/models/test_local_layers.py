"""The local layers against independent implementations: transformers, and attention by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_gdpo.platform import current_platform

current_platform()

import torch  # noqa: E402
from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from transformers import LlamaConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

from nemo_gdpo.conversion.model_config import MegatronModelConfig  # noqa: E402
from nemo_gdpo.models.attention import CoreAttention, window_mask, zigzag_positions  # noqa: E402
from nemo_gdpo.models.norm import RMSNorm  # noqa: E402
from nemo_gdpo.models.rope import inverse_frequencies  # noqa: E402

HEADS, GROUPS, DIM = 4, 2, 8
MODEL = MegatronModelConfig(
    family="llama", num_layers=2, hidden_size=HEADS * DIM, ffn_hidden_size=48,
    num_attention_heads=HEADS, num_query_groups=GROUPS, kv_channels=DIM, vocab_size=11,
    max_position_embeddings=64, rotary_base=10000.0, layernorm_epsilon=1e-5,
)  # fmt: skip


def _config(**changes: Any) -> TransformerConfig:
    return TransformerConfig(
        num_layers=2, hidden_size=HEADS * DIM, num_attention_heads=HEADS, num_query_groups=GROUPS,
        kv_channels=DIM, normalization="RMSNorm", attention_dropout=0.0, hidden_dropout=0.0,
        use_cpu_initialization=True, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_llamas(dtype: torch.dtype) -> None:
    config = _config(params_dtype=dtype)
    ours, theirs = RMSNorm(config, 32, eps=1e-5), LlamaRMSNorm(32, eps=1e-5).to(dtype)
    weight = torch.randn(32).to(dtype)
    x = (torch.randn(5, 3, 32) * 4).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(weight)
        theirs.weight.copy_(weight)
    assert torch.equal(ours(x), theirs(x))


def test_norm_refuses_another_norm() -> None:
    config = _config()
    config.normalization = "LayerNorm"
    with pytest.raises(ValueError, match="RMSNorm"):
        RMSNorm(config, 32)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0,
            "original_max_position_embeddings": 256,
        },
    ],
)  # fmt: skip
def test_rotary_frequencies_are_transformers(scaling: dict[str, Any] | None) -> None:
    parameters = {"rope_theta": 500000.0, **(scaling or {"rope_type": "default"})}
    theirs = LlamaConfig(
        hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=parameters
    )
    model = replace(MODEL, kv_channels=128, rotary_base=500000.0, rotary_scaling=scaling)
    if scaling is None:
        wanted = 1.0 / 500000.0 ** (torch.arange(0, 128, 2) / 128)
    else:
        wanted, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, torch.device("cpu"))
        assert factor == 1.0
        # The scaling must matter, or equality would hold without it.
        plain = inverse_frequencies(replace(model, rotary_scaling=None))
        assert not torch.allclose(wanted, plain)
    assert torch.allclose(inverse_frequencies(model), wanted, rtol=1e-6, atol=0)


class _Group:
    @staticmethod
    def size() -> int:
        return 1


def _attention(window: int | None = None) -> CoreAttention:
    config = _config()
    config.window_size = None if window is None else (window, 0)
    groups = SimpleNamespace(cp=_Group())
    return CoreAttention(config, 1, AttnMaskType.causal, "self", pg_collection=groups)


def _by_hand(q_SND: Any, k_SGD: Any, v_SGD: Any, window: int | None) -> torch.Tensor:
    """One sequence, one query head and position at a time."""
    length = q_SND.shape[0]
    out = torch.zeros_like(q_SND)
    for head in range(HEADS):
        group = head * GROUPS // HEADS
        for i in range(length):
            first = 0 if window is None else max(0, i - window)
            keys = k_SGD[first : i + 1, group]
            scores = keys @ q_SND[i, head] / math.sqrt(DIM)
            out[i, head] = scores.softmax(0) @ v_SGD[first : i + 1, group]
    return out.reshape(length, -1)


def _qkv(length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(length, heads, DIM, generator=generator) for heads in (HEADS, GROUPS, GROUPS)
    ]


@pytest.mark.parametrize("window", [None, 3, 20])
def test_attention_padded(window: int | None) -> None:
    """Grouped queries, causal, with and without a window shorter than the sequence."""
    q, k, v = _qkv(9)
    out = _attention(window)(*(x[:, None] for x in (q, k, v)), None)
    assert torch.allclose(out[:, 0], _by_hand(q, k, v, window), atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_packed(window: int | None) -> None:
    """Sequences of one row do not see each other."""
    parts = [_qkv(length) for length in (5, 1, 7)]
    q, k, v = (torch.cat([part[i] for part in parts]) for i in range(3))
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=torch.tensor([0, 5, 6, 13], dtype=torch.int32)
    )
    out = _attention(window)(q, k, v, None, packed_seq_params=packed)
    wanted = torch.cat([_by_hand(*part, window) for part in parts])
    assert torch.allclose(out, wanted, atol=1e-6)


def test_attention_refuses_what_it_would_ignore() -> None:
    q, k, v = (x[:, None] for x in _qkv(4))
    with pytest.raises(ValueError, match="mask"):
        _attention()(q, k, v, torch.ones(4, 4, dtype=torch.bool))
    groups = SimpleNamespace(cp=_Group())
    with pytest.raises(ValueError, match="causal"):
        CoreAttention(_config(), 1, AttnMaskType.no_mask, "self", pg_collection=groups)
    with pytest.raises(ValueError, match="dropout"):
        CoreAttention(
            _config(), 1, AttnMaskType.causal, "self", attention_dropout=0.1, pg_collection=groups
        )


def test_zigzag_covers_every_position_once() -> None:
    """Two ranks of eight positions: chunks 0 and 3 against 1 and 2."""
    device = torch.device("cpu")
    assert zigzag_positions(8, 0, 2, device).tolist() == [0, 1, 6, 7]
    assert zigzag_positions(8, 1, 2, device).tolist() == [2, 3, 4, 5]


def test_window_mask_by_hand() -> None:
    """A query sees itself and `window` positions back."""
    seen = window_mask(torch.arange(4), torch.arange(4), 1)
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
