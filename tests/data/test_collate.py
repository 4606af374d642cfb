"""Batches: where the labels are, padded and packed alike, and flat values back to [N, T]."""

from __future__ import annotations

import pytest
import torch

from nemo_gdpo.data import (
    TokenizedPair,
    TokenizedResponse,
    pack_batch,
    pad_batch,
    responses_from_flat,
)
from nemo_gdpo.errors import UserError

END, PAD = 2, 0
A = TokenizedPair(
    "a", (1, 11), TokenizedResponse((21, 22, END), True), TokenizedResponse((31,), False), 2.0, 0.5
)
B = TokenizedPair(
    "b", (1,), TokenizedResponse((41, END), True), TokenizedResponse((51, 52, END), True), 1.0, 0.25
)


def test_padded_rows_by_hand() -> None:
    batch = pad_batch([A, B], 6, PAD)
    assert batch.tokens_NS.tolist() == [
        [1, 11, 21, 22, END, PAD],
        [1, 41, END, PAD, PAD, PAD],
        [1, 11, 31, PAD, PAD, PAD],
        [1, 51, 52, END, PAD, PAD],
    ]
    x = -100
    assert batch.labels_NS.tolist() == [
        [x, 21, 22, END, x, x],
        [41, END, x, x, x, x],
        [x, 31, x, x, x, x],
        [51, 52, END, x, x, x],
    ]
    assert batch.position_ids_NS.tolist() == [[0, 1, 2, 3, 4, 5]] * 4
    assert batch.response_lengths_N.tolist() == [3, 2, 1, 3]
    assert batch.complete_N.tolist() == [True, True, False, True]
    assert batch.chosen_score_B is not None and batch.rejected_score_B is not None
    assert batch.chosen_score_B.tolist() == [2.0, 1.0]
    assert batch.rejected_score_B.tolist() == [0.5, 0.25]
    types = (batch.tokens_NS, batch.labels_NS, batch.position_ids_NS, batch.response_lengths_N)
    assert all(tensor.dtype == torch.int64 for tensor in types)
    assert batch.chosen_score_B.dtype == batch.rejected_score_B.dtype == torch.float32


def test_packed_row_is_the_padded_rows_without_padding() -> None:
    padded = pad_batch([A, B], 6, PAD)
    packed = pack_batch([A, B], 20, PAD)
    assert packed.cu_seqlens.tolist() == [0, 5, 8, 11, 15, 20]
    assert packed.cu_seqlens.dtype == torch.int32 and packed.max_seqlen == 5
    bounds = packed.cu_seqlens.tolist()
    for row in range(4):
        span = slice(bounds[row], bounds[row + 1])
        length = bounds[row + 1] - bounds[row]
        assert packed.tokens_1S[0, span].equal(padded.tokens_NS[row, :length])
        assert packed.labels_1S[0, span].equal(padded.labels_NS[row, :length])
        assert packed.position_ids_1S[0, span].equal(padded.position_ids_NS[row, :length])
    assert packed.tokens_1S[0, 15:].tolist() == [PAD] * 5
    assert packed.labels_1S[0, 15:].tolist() == [-100] * 5
    assert packed.response_lengths_N.equal(padded.response_lengths_N)
    tight = pack_batch([A, B], None, PAD)
    assert tight.tokens_1S.shape == (1, 15) and tight.cu_seqlens.tolist() == [0, 5, 8, 11, 15]
    # Both give the labels in the same flat order, the one responses_from_flat expects.
    flat = [labels[labels != -100] for labels in (padded.labels_NS, packed.labels_1S)]
    assert flat[0].equal(flat[1])
    assert flat[0].tolist() == [21, 22, END, 41, END, 31, 51, 52, END]


def test_scores_only_when_every_pair_has_them() -> None:
    bare = TokenizedPair("c", (1,), A.chosen, A.rejected)
    batch = pad_batch([A, bare], 8, PAD)
    assert batch.chosen_score_B is None and batch.rejected_score_B is None


def test_batches_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="pair 'a' has 5 tokens, the rows have 4"):
        pad_batch([A, B], 4, PAD)
    with pytest.raises(UserError, match="2 pairs need 15 packed positions, there are 14"):
        pack_batch([A, B], 14, PAD)
    with pytest.raises(ValueError, match="at least one pair"):
        pad_batch([], 4, PAD)


def test_moving_a_batch_keeps_everything() -> None:
    batch = pad_batch([A, B], 6, PAD).to("meta")
    assert batch.tokens_NS.device.type == "meta" and batch.tokens_NS.shape == (4, 6)
    assert batch.chosen_score_B is not None and batch.chosen_score_B.device.type == "meta"
    packed = pack_batch([A, B], 16, PAD).to("meta")
    assert packed.cu_seqlens.device.type == "meta" and packed.max_seqlen == 5


def test_flat_values_become_rows_with_gradients() -> None:
    values_T = torch.arange(1.0, 7.0, dtype=torch.float64, requires_grad=True)
    values_NT, mask_NT = responses_from_flat(values_T, torch.tensor([3, 0, 1, 2]))
    assert values_NT.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0], [5, 6, 0]]
    true, false = True, False
    assert mask_NT.tolist() == [
        [true, true, true],
        [false, false, false],
        [true, false, false],
        [true, true, false],
    ]
    weights_NT = torch.tensor([[1, 2, 3], [9, 9, 9], [4, 9, 9], [5, 6, 9]], dtype=torch.float64)
    (values_NT * weights_NT).sum().backward()
    assert values_T.grad is not None
    assert values_T.grad.tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="6 values for responses of 5 positions"):
        responses_from_flat(values_T, torch.tensor([3, 2]))
