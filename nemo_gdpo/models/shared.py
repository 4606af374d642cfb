"""Rows that hold a prompt once for both responses, as megatron's layers are told of them.

The rotary embedding sees one sequence of all T positions, with the angle of each given; attention
sees the sequences, whose keys are repeated where two of them share some. So ordinary kernels for
sequences of unequal length do: one with more keys than queries is causal from the bottom right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

from nemo_gdpo.data.collate import PackedBatch, SharedKeys


@dataclass
class SharedSeqParams(PackedSeqParams):  # type: ignore[misc]
    """megatron's bounds are those of the whole row; `bounds` and `keys` are attention's."""

    bounds: Tensor = None  # type: ignore[assignment]
    """int32: of the sequences' queries."""
    keys: SharedKeys = None  # type: ignore[assignment]
    positions_T: Tensor = None  # type: ignore[assignment]
    """int64: of each token in its sequence."""
    longest: int = 0
    """Queries of the longest sequence."""

    @classmethod
    def of(cls, rows: PackedBatch) -> SharedSeqParams:
        """Of a row whose prompts are shared."""
        assert rows.shared is not None
        whole = torch.tensor([0, rows.tokens_1S.shape[1]], dtype=torch.int32)
        whole = whole.to(rows.cu_seqlens.device)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=whole,
            cu_seqlens_kv=whole,
            # So many angles are made, of which each token takes its own.
            max_seqlen_q=rows.shared.max_seqlen,
            max_seqlen_kv=rows.shared.max_seqlen,
            bounds=rows.cu_seqlens,
            keys=rows.shared,
            positions_T=rows.position_ids_1S[0],
            longest=rows.max_seqlen,
        )


def take_angles(module: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
    """Forward pre-hook of megatron's decoder: the angle of each token of a shared row."""
    del module
    params, angles = named.get("packed_seq_params"), named.get("rotary_pos_emb")
    if not isinstance(params, SharedSeqParams):
        return None
    if angles is None:
        raise ValueError("shared prompts need rotary embeddings")
    return arguments, named | {"rotary_pos_emb": angles.index_select(0, params.positions_T)}


def with_shared_keys(attention: type[nn.Module]) -> type[nn.Module]:
    """Transformer Engine's attention, which repeats the keys of shared prompts.

    Args:
        attention: megatron's `TEDotProductAttention`.
    """

    class SharedKeysAttention(attention):  # type: ignore[misc, valid-type]
        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            *arguments: Any,
            packed_seq_params: PackedSeqParams | None = None,
            **named: Any,
        ) -> Tensor:
            """As megatron's; [T, N * D] for a row with shared prompts."""
            if not isinstance(packed_seq_params, SharedSeqParams):
                output: Tensor = super().forward(
                    query, key, value, *arguments, packed_seq_params=packed_seq_params, **named
                )
                return output
            keys = packed_seq_params.keys
            self._expect_more_keys_than_queries()
            # Transformer Engine's own: megatron's knows no such mask for packed rows.
            shared: Tensor = super(attention, self).forward(  # type: ignore[misc]
                query,
                key.index_select(0, keys.index_K),
                value.index_select(0, keys.index_K),
                None,
                qkv_format="thd",
                attn_mask_type="padding_causal_bottom_right",
                cu_seqlens_q=packed_seq_params.bounds,
                cu_seqlens_kv=keys.cu_seqlens,
                max_seqlen_q=packed_seq_params.longest,
                max_seqlen_kv=keys.max_seqlen,
            )
            return shared

        def _expect_more_keys_than_queries(self) -> None:
            """As Transformer Engine does for a cache of keys; its masks assume as many else."""
            if self.attention_type != "cross":
                self.fast_setattr("attention_type", "cross")
                for kernel in (self.flash_attention, self.fused_attention, self.unfused_attention):
                    kernel.attention_type = "cross"

    return SharedKeysAttention
