"""Core attention against a softmax written out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_gdpo.data.collate import pack_batch, pad_batch
from nemo_gdpo.data.shared import share_batch
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.models.attention import (
    CoreAttention,
    packed_positions,
    window_mask,
    zigzag_positions,
)
from nemo_gdpo.models.forward import packed_params
from nemo_gdpo.models.shared import SharedSeqParams
from tests.models.megatron_parts import Groups, transformer_config

from megatron.core.packed_seq_params import PackedSeqParams  # isort: skip - after the platform
from megatron.core.transformer.enums import AttnMaskType  # isort: skip

HEADS, GROUPS, DIM = 4, 2, 8


def core_attention(*, window: tuple[int, int] | None = None, **arguments: Any) -> CoreAttention:
    config = transformer_config()
    config.window_size = window
    config.window_attn_skip_freq = arguments.pop("layers", None)
    number = arguments.pop("number", 1)
    settings = {"attn_mask_type": AttnMaskType.causal, "attention_type": "self"} | arguments
    return CoreAttention(config, number, pg_collection=Groups(), **settings)


def inputs(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(*shape, heads, DIM, generator=draw, requires_grad=True)
        for heads in (HEADS, GROUPS, GROUPS)
    )


def plain(
    query_SND: Tensor,
    key_SGD: Tensor,
    value_SGD: Tensor,
    reach: int | None,
    softcap: float | None = None,
) -> Tensor:
    """[S, N * D] of one sequence; a query sees itself and `reach` positions before it."""
    outputs = []
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        scores_SS = query_SND[:, head] @ key_SGD[:, group].T / DIM**0.5
        if softcap is not None:
            scores_SS = softcap * torch.tanh(scores_SS / softcap)
        for i in range(scores_SS.shape[0]):
            for j in range(scores_SS.shape[0]):
                if j > i or (reach is not None and i - j > reach):
                    scores_SS[i, j] = float("-inf")
        outputs.append(scores_SS.softmax(-1) @ value_SGD[:, group])
    return torch.stack(outputs, dim=1).flatten(1)


def assert_same(found: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """Values and gradients."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    factor = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        torch.autograd.grad((found * factor).sum(), leaves),
        torch.autograd.grad((expected * factor).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# A Hugging Face window of W counts the query itself: (W - 1, 0) here.
@pytest.mark.parametrize("window", [None, (0, 0), (2, 0), (8, 0), (50, 0)])
def test_rows(window: tuple[int, int] | None) -> None:
    query, key, value = inputs(9, 2)
    found = core_attention(window=window)(query, key, value, None)
    assert found.shape == (9, 2, HEADS * DIM)
    reach = None if window is None else window[0]
    expected = [plain(query[:, b], key[:, b], value[:, b], reach) for b in range(2)]
    assert_same(found, torch.stack(expected, dim=1), (query, key, value))


@pytest.mark.parametrize("window", [None, (2, 0)])
def test_packed_sequences_do_not_see_each_other(window: tuple[int, int] | None) -> None:
    query, key, value = inputs(12)
    bounds = [0, 5, 6, 12]
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=torch.tensor(bounds, dtype=torch.int32),
        cu_seqlens_kv=torch.tensor(bounds, dtype=torch.int32),
    )
    found = core_attention(window=window)(query, key, value, None, packed_seq_params=packed)
    reach = None if window is None else window[0]
    expected = [
        plain(query[a:b], key[a:b], value[a:b], reach) for a, b in itertools.pairwise(bounds)
    ]
    assert_same(found, torch.cat(expected), (query, key, value))


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [None, (2, 0)])
def test_responses_share_the_prompts_keys_and_do_not_see_each_other(
    window: tuple[int, int] | None, softcap: float | None
) -> None:
    """Prompts of 4 and 1 tokens; chosen ones of 2 and 3, rejected ones of 3 and 1; one to fill."""

    def pair(prompt: int, chosen: int, rejected: int) -> TokenizedPair:
        ids = tuple(range(3, 20))
        responses = (TokenizedResponse(ids[:count], complete=True) for count in (chosen, rejected))
        return TokenizedPair("p", ids[:prompt], *responses)

    row = share_batch([pair(4, 2, 3), pair(1, 3, 1)], 17, 0)
    assert row.cu_seqlens.tolist() == [0, 6, 10, 14, 16, 17]
    query, key, value = inputs(17)
    found = core_attention(window=window, softcap=softcap)(
        query, key, value, None, packed_seq_params=SharedSeqParams.of(row)
    )
    reach = None if window is None else window[0]
    # As though each sequence stood alone; of the first rejected one its own four places count.
    places = [range(6), range(6, 10), [0, 1, 2, 10, 11, 12, 13], range(14, 16), range(16, 17)]
    expected = [
        plain(*(x[list(own)] for x in (query, key, value)), reach, softcap) for own in places
    ]
    expected[2] = expected[2][3:]
    assert_same(found, torch.cat(expected), (query, key, value))


@pytest.mark.parametrize("window", [None, (2, 0)])
def test_soft_cap_of_scores(window: tuple[int, int] | None) -> None:
    query, key, value = inputs(7, 2)
    capped = core_attention(window=window, softcap=0.5)
    reach = None if window is None else window[0]
    expected = [plain(query[:, b], key[:, b], value[:, b], reach, 0.5) for b in range(2)]
    found = capped(query, key, value, None)
    assert_same(found, torch.stack(expected, dim=1), (query, key, value))
    uncapped = core_attention(window=window)(query, key, value, None)
    assert (found - uncapped).abs().max() > 0.05


def test_windows_go_by_the_number_of_the_layer() -> None:
    """Layers count from 1."""
    found = [core_attention(window=(2, 0), layers=[1, 0, 1], number=n).window for n in (1, 2, 3)]
    assert found == [2, None, 2]


def test_scale_is_taken_from_the_head_or_as_given() -> None:
    query, key, value = inputs(4, 1)
    assert core_attention().softmax_scale == pytest.approx(DIM**-0.5)
    assert core_attention(softmax_scale=None).softmax_scale == pytest.approx(DIM**-0.5)
    found = core_attention(softmax_scale=0.1)(query, key, value, None)
    stretched = core_attention()(query * 0.1 * DIM**0.5, key, value, None)
    torch.testing.assert_close(found, stretched)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"attention_dropout": 0.1}, "dropout"),
        ({"attn_mask_type": AttnMaskType.no_mask}, "only causal"),
        ({"attention_type": "cross"}, "only self-attention"),
    ],
)
def test_refused_at_construction(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        core_attention(**arguments)


@pytest.mark.parametrize("argument", ["attention_mask", "attention_bias"])
def test_a_mask_or_bias_is_refused_and_not_ignored(argument: str) -> None:
    query, key, value = inputs(3, 1)
    given = {"attention_mask": None, argument: torch.zeros(3, 3)}
    with pytest.raises(ValueError, match="no explicit mask or bias"):
        core_attention()(query, key, value, **given)


def test_context_parallel_chunks_cover_and_balance() -> None:
    device = torch.device("cpu")
    assert zigzag_positions(8, 0, 2, device).tolist() == [0, 1, 6, 7]
    assert zigzag_positions(8, 1, 2, device).tolist() == [2, 3, 4, 5]
    parts = [zigzag_positions(24, rank, 3, device) for rank in range(3)]
    assert torch.cat(parts).sort().values.tolist() == list(range(24))
    # A position sees as many keys as it has predecessors: the sums are the causal work.
    assert len({int(part.sum()) for part in parts}) == 1


def test_window_mask_follows_positions_not_columns() -> None:
    seen = window_mask(torch.tensor([0, 3]), torch.tensor([3, 0, 1, 2]), 2)
    assert seen.tolist() == [[False, True, False, False], [True, False, True, True]]


def test_each_packed_sequence_is_cut_by_itself() -> None:
    bounds = torch.tensor([0, 8, 12, 24], dtype=torch.int32)
    assert packed_positions(bounds, 0, 2).tolist() == [0, 1, 6, 7, 8, 11, 12, 13, 14, 21, 22, 23]
    assert packed_positions(bounds, 1, 2).tolist() == [2, 3, 4, 5, 9, 10, 15, 16, 17, 18, 19, 20]
    assert packed_positions(bounds, 0, 1).tolist() == list(range(24))


def test_bounds_of_packed_rows_for_the_layers() -> None:
    """Transformer Engine's attention refuses packed rows under CP without bounds of the filling."""
    ids = tuple(range(3, 12))
    pair = TokenizedPair("p", ids[:3], TokenizedResponse(ids, True), TokenizedResponse(ids, True))
    rows = pack_batch([pair], 32, 0, multiple=4)
    alone, cut = packed_params(rows, 1), packed_params(rows, 2)
    assert alone is not None and cut is not None
    assert alone.cu_seqlens_q.tolist() == cut.cu_seqlens_q.tolist() == [0, 12, 24, 32]
    assert alone.cu_seqlens_q_padded is None
    assert cut.cu_seqlens_q_padded.tolist() == cut.cu_seqlens_kv_padded.tolist() == [0, 12, 24, 32]
    assert (cut.max_seqlen_q, cut.pad_between_seqs) == (12, False)
    assert packed_params(pad_batch([pair], 16, 0), 2) is None
