"""Core attention for the local layer spec: GQA, causal, sliding window, packed, context parallel.

megatron-core's own local attention materialises [heads, S, S] scores, refuses packed sequences and
context parallelism. This one hands each dense block to torch's scaled-dot-product attention, or,
where scores have a soft-cap, which that lacks, writes the softmax out.

Shapes: S sequence, B batch, T packed tokens, N query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor, nn
from torch.nn import functional

from nemo_gdpo.models.shared import SharedSeqParams


class _GatherSequence(torch.autograd.Function):
    """All-gather along dim 0; in backward every rank gets the sum of its own part's gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        parts = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        group: dist.ProcessGroup = ctx.group  # type: ignore[attr-defined]
        total = grads[0].contiguous()
        # All-reduce and slice: gloo has no reduce-scatter for every type.
        dist.all_reduce(total, group=group)
        return total.chunk(group.size())[group.rank()].contiguous(), None


def zigzag_positions(length: int, rank: int, world: int, device: torch.device) -> Tensor:
    """Global positions [length / world] that context-parallel rank `rank` holds.

    Megatron cuts a sequence into 2 * world chunks and gives rank r chunks r and 2 * world - 1 - r,
    so that causal work is balanced.
    """
    chunks = torch.arange(length, device=device).chunk(2 * world)
    return torch.cat([chunks[rank], chunks[2 * world - 1 - rank]])


def packed_positions(cu_seqlens: Tensor, rank: int, world: int) -> Tensor:
    """Places in a packed row [T / world] that context-parallel rank `rank` holds.

    Each sequence is cut by itself, as `zigzag_positions` says, and its parts stay in order: what
    megatron's rotary embedding and Transformer Engine's attention expect of packed rows.

    Args:
        cu_seqlens: bounds; every sequence has a multiple of 2 * world positions.
        rank: of the context-parallel group.
        world: size of the group.
    """
    parts = [
        start + zigzag_positions(stop - start, rank, world, cu_seqlens.device)
        for start, stop in pairwise(cu_seqlens.tolist())
    ]
    return torch.cat(parts)


def window_mask(query_S: Tensor, key_S: Tensor, window: int | None) -> Tensor:
    """Which keys each query may see, bool [len(query), len(key)], from their positions.

    Args:
        query_S: positions of the queries.
        key_S: positions of the keys.
        window: how many positions back a query sees besides itself; None does not limit.
    """
    distance = query_S[:, None] - key_S[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance <= window)


class CoreAttention(nn.Module):
    """softmax(QK^T / sqrt(D)) V under a causal, optionally windowed, optionally packed mask.

    With a soft-cap c, scores are c * tanh(score / c) before the softmax (Gemma Team 2024, section
    2); [heads, S, S] scores are then kept for the backward pass.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        softcap: float | None = None,
    ) -> None:
        """Signature of megatron's core attention, and the soft-cap of scores.

        Raises:
            ValueError: dropout, a mask that is not causal, or cross-attention is asked for.
        """
        super().__init__()
        del cp_comm_type
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise ValueError(
                "attention dropout would make policy and reference differ: set it to 0"
            )
        if attn_mask_type not in {AttnMaskType.causal, AttnMaskType.padding_causal}:
            raise ValueError(f"only causal attention is built, not {attn_mask_type}")
        if attention_type != "self":
            raise ValueError(f"only self-attention is built, not {attention_type}")
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        # megatron: (left, right) positions besides the query's own; None is unlimited.
        windowed = is_layer_window_attention(
            config.window_size, config.window_attn_skip_freq, layer_number
        )
        self.window = config.window_size[0] if windowed and config.window_size else None
        self.softcap = softcap
        cp_group = (
            parallel_state.get_context_parallel_group()
            if pg_collection is None
            else pg_collection.cp
        )
        self.cp_group: dist.ProcessGroup | None = cp_group if cp_group.size() > 1 else None

    def _attend(
        self, q_BNSD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: Tensor | None
    ) -> Tensor:
        if self.softcap is not None:
            return self._attend_capped(q_BNSD, k_BGSD, v_BGSD, mask)
        return functional.scaled_dot_product_attention(
            q_BNSD,
            k_BGSD,
            v_BGSD,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=q_BNSD.shape[1] != k_BGSD.shape[1],
        )

    def _attend_capped(
        self, q_BNSD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: Tensor | None
    ) -> Tensor:
        assert self.softcap is not None
        shared = q_BNSD.shape[1] // k_BGSD.shape[1]
        k_BNSD, v_BNSD = (x.repeat_interleave(shared, dim=1) for x in (k_BGSD, v_BGSD))
        scores_BNSS = q_BNSD @ k_BNSD.transpose(2, 3) * self.softmax_scale
        scores_BNSS = self.softcap * torch.tanh(scores_BNSS / self.softcap)
        if mask is None:
            positions = torch.arange(q_BNSD.shape[2], device=q_BNSD.device)
            mask = window_mask(positions, positions, None)
        weights_BNSS = scores_BNSS.masked_fill(~mask, float("-inf")).softmax(-1, torch.float32)
        return weights_BNSS.to(v_BNSD.dtype) @ v_BNSD

    def _dense_mask(self, length: int, device: torch.device) -> Tensor | None:
        if self.window is None or length <= self.window:
            return None
        positions = torch.arange(length, device=device)
        return window_mask(positions, positions, self.window)

    def _shared(
        self, q_TND: Tensor, k_TGD: Tensor, v_TGD: Tensor, params: SharedSeqParams
    ) -> Tensor:
        """Each sequence's queries are the last of its keys."""
        k_KGD, v_KGD = (x.index_select(0, params.keys.index_K) for x in (k_TGD, v_TGD))
        outputs = []
        for (start, stop), (first, last) in zip(
            pairwise(params.bounds.tolist()),
            pairwise(params.keys.cu_seqlens.tolist()),
            strict=True,
        ):
            q = q_TND[start:stop].transpose(0, 1)[None]
            k, v = (x[first:last].transpose(0, 1)[None] for x in (k_KGD, v_KGD))
            positions = torch.arange(last - first, device=q_TND.device)
            before = last - first - (stop - start)
            mask = (
                window_mask(positions[before:], positions, self.window)
                if before
                else self._dense_mask(stop - start, q_TND.device)
            )
            outputs.append(self._attend(q, k, v, mask)[0].transpose(0, 1))
        return torch.cat(outputs)

    def _packed(self, q_TND: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor) -> Tensor:
        if self.cp_group is not None:
            return self._packed_context_parallel(q_TND, k_TGD, v_TGD, cu_seqlens)
        outputs = []
        bounds = cu_seqlens.tolist()
        for start, stop in pairwise(bounds):
            q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (q_TND, k_TGD, v_TGD))
            mask = self._dense_mask(stop - start, q_TND.device)
            outputs.append(self._attend(q, k, v, mask)[0].transpose(0, 1))
        return torch.cat(outputs)

    def _packed_context_parallel(
        self, q_TND: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor
    ) -> Tensor:
        """Queries stay; keys and values of the complete row are gathered, and put into order."""
        group = self.cp_group
        assert group is not None
        world, device = group.size(), q_TND.device
        places = torch.cat([packed_positions(cu_seqlens, r, world) for r in range(world)])
        order = places.argsort().to(device)
        k_all = _GatherSequence.apply(k_TGD, group)[order]  # type: ignore[no-untyped-call]
        v_all = _GatherSequence.apply(v_TGD, group)[order]  # type: ignore[no-untyped-call]
        outputs, own = [], 0
        for start, stop in pairwise(cu_seqlens.tolist()):
            length = stop - start
            q = q_TND[own : own + length // world].transpose(0, 1)[None]
            k, v = (x[start:stop].transpose(0, 1)[None] for x in (k_all, v_all))
            mask = window_mask(
                zigzag_positions(length, group.rank(), world, device),
                torch.arange(length, device=device),
                self.window,
            )
            outputs.append(self._attend(q, k, v, mask)[0].transpose(0, 1))
            own += length // world
        return torch.cat(outputs)

    def _context_parallel(self, q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor) -> Tensor:
        """Queries stay; keys and values of the complete sequence are gathered on every rank."""
        group = self.cp_group
        assert group is not None
        world, length = group.size(), q_SBND.shape[0] * group.size()
        k_all = _GatherSequence.apply(k_SBGD, group)  # type: ignore[no-untyped-call]
        v_all = _GatherSequence.apply(v_SBGD, group)  # type: ignore[no-untyped-call]
        device = q_SBND.device
        key_positions = torch.cat(
            [zigzag_positions(length, r, world, device) for r in range(world)]
        )
        mask = window_mask(
            zigzag_positions(length, group.rank(), world, device), key_positions, self.window
        )
        q, k, v = (x.permute(1, 2, 0, 3) for x in (q_SBND, k_all, v_all))
        return self._attend(q, k, v, mask).permute(2, 0, 1, 3)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, B, N, D], or [T, N, D] when packed.
            key: [S, B, G, D] or [T, G, D].
            value: as key.
            attention_mask: None; rows are padded on the right, where causality hides the padding.
            attn_mask_type: as at construction.
            attention_bias: None.
            packed_seq_params: bounds of the packed sequences, covering all T tokens.

        Returns:
            [S, B, N * D], or [T, N * D] when packed.

        Raises:
            ValueError: a mask or bias is given that this module would otherwise ignore.
        """
        del attn_mask_type
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("core attention takes no explicit mask or bias: rows are right-padded")
        if isinstance(packed_seq_params, SharedSeqParams):
            out_TND = self._shared(query, key, value, packed_seq_params)
            return out_TND.reshape(out_TND.shape[0], -1)
        if packed_seq_params is not None:
            out_TND = self._packed(query, key, value, packed_seq_params.cu_seqlens_q)
            return out_TND.reshape(out_TND.shape[0], -1)
        if self.cp_group is not None:
            out_SBND = self._context_parallel(query, key, value)
        else:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            mask = self._dense_mask(query.shape[0], query.device)
            out_SBND = self._attend(q, k, v, mask).permute(2, 0, 1, 3)
        return out_SBND.reshape(*out_SBND.shape[:2], -1)
