"""Pairs to tensors: padded rows, or one packed row; and flat response values back to [N, T].

B pairs give N = 2B sequences, all chosen first: row i is pair i's chosen response, row B + i its
rejected one. The label at position s is token s + 1 when that token belongs to the response, else
-100: prompts, padding and the last position of a sequence have no label. A sequence of P prompt and
T response tokens therefore has T labels, at positions P - 1 to P + T - 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError

IGNORE = -100


@dataclass(frozen=True)
class BatchRows:
    """Fields that padded and packed batches share, row by row and pair by pair."""

    response_lengths_N: Tensor
    """int64: labels of each row, the end token included when there is one."""
    complete_N: Tensor
    """bool: the row's last label is the end token."""
    chosen_score_B: Tensor | None
    """float32, or None when any pair of the batch has no scores."""
    rejected_score_B: Tensor | None
    weight_B: Tensor | None
    """float32, or None where the data has no weights; likewise the margins."""
    margin_B: Tensor | None
    chosen_label_B: Tensor | None
    """bool, of unpaired rows in the places of chosen and rejected; None of pairs."""
    rejected_label_B: Tensor | None


@dataclass(frozen=True)
class PaddedBatch(BatchRows):
    """N rows of S positions, padded on the right."""

    tokens_NS: Tensor
    labels_NS: Tensor
    position_ids_NS: Tensor

    def to(self, device: torch.device | str) -> PaddedBatch:
        return PaddedBatch(**_fields_on_device(self, device))


@dataclass(frozen=True)
class SharedKeys:
    """Which keys and values the sequences of a row attend to, where prompts are shared.

    K counts keys with their repetitions: a sequence's queries are the last of its keys.
    """

    index_K: Tensor
    """int64: place in the row of each key."""
    cu_seqlens: Tensor
    """int32: bounds of the sequences' keys."""
    max_seqlen: int

    def to(self, device: torch.device | str) -> SharedKeys:
        return SharedKeys(
            self.index_K.to(device, non_blocking=True),
            self.cu_seqlens.to(device, non_blocking=True),
            self.max_seqlen,
        )


@dataclass(frozen=True)
class PackedBatch(BatchRows):
    """N sequences one after the other in one row, each with its filling, if it needs some.

    `cu_seqlens` (int32) holds the N + 1 boundaries of the sequences, and one more at S when the row
    is filled up: that filling is a separate sequence, so that every position attends to something.
    What fills a sequence up stands behind it, where causality hides it.
    """

    tokens_1S: Tensor
    labels_1S: Tensor
    position_ids_1S: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    shared: SharedKeys | None = None
    """Where prompts are shared; None: every sequence attends to itself alone."""

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(**_fields_on_device(self, device))


def _fields_on_device(batch: BatchRows, device: torch.device | str) -> dict[str, Any]:
    return {
        key: value.to(device, non_blocking=True)
        if isinstance(value, Tensor)
        else value.to(device)
        if isinstance(value, SharedKeys)
        else value
        for key, value in vars(batch).items()
    }


def pad_batch(pairs: Sequence[TokenizedPair], seq_length: int, pad_id: int) -> PaddedBatch:
    """Lay pairs out as N = 2B rows of `seq_length` positions.

    Raises:
        UserError: a sequence is longer than `seq_length`.
    """
    sequences = _sequences(pairs)
    tokens_NS = torch.full((len(sequences), seq_length), pad_id, dtype=torch.int64)
    labels_NS = torch.full((len(sequences), seq_length), IGNORE, dtype=torch.int64)
    for row, (prompt, response) in enumerate(sequences):
        ids, labels = ids_and_labels(prompt, response)
        if len(ids) > seq_length:
            raise UserError(
                f"pair {pairs[row % len(pairs)].id!r} has {len(ids)} tokens, the rows have "
                f"{seq_length}; lower data.max_length"
            )
        tokens_NS[row, : len(ids)] = torch.tensor(ids)
        labels_NS[row, : len(ids)] = torch.tensor(labels)
    position_ids_NS = torch.arange(seq_length).expand(len(sequences), -1).contiguous()
    return PaddedBatch(
        **_rows(pairs),
        tokens_NS=tokens_NS,
        labels_NS=labels_NS,
        position_ids_NS=position_ids_NS,
    )


def pack_batch(
    pairs: Sequence[TokenizedPair], total_length: int | None, pad_id: int, *, multiple: int = 1
) -> PackedBatch:
    """Lay pairs out as one row; None for `total_length` is exactly as long as needed.

    Args:
        pairs: one or more.
        total_length: of the row, a multiple of `multiple`.
        pad_id: token that fills up.
        multiple: of which each sequence takes whole ones.

    Raises:
        UserError: the sequences do not fit.
    """
    sequences = [(*ids_and_labels(prompt, response), 0) for prompt, response in _sequences(pairs)]
    return pack_sequences(sequences, pairs, total_length, pad_id, multiple=multiple)


def pack_sequences(
    sequences: Sequence[tuple[list[int], list[int], int]],
    pairs: Sequence[TokenizedPair],
    total_length: int | None,
    pad_id: int,
    *,
    multiple: int = 1,
) -> PackedBatch:
    """Lay sequences out one after the other; see `pack_batch`.

    Args:
        sequences: (ids, labels, position of the first) of each.
        pairs: of which they are.
        total_length: of the row.
        pad_id: token that fills up.
        multiple: of which each sequence takes whole ones.
    """
    tokens: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    bounds = [0]
    for own_ids, own_labels, first in sequences:
        filling = -len(own_ids) % multiple
        tokens += [*own_ids, *[pad_id] * filling]
        labels += [*own_labels, *[IGNORE] * filling]
        positions += range(first, first + len(own_ids) + filling)
        bounds.append(len(tokens))
    fill = 0 if total_length is None else total_length - len(tokens)
    if fill < 0:
        raise UserError(
            f"{len(pairs)} pairs need {len(tokens)} packed positions, there are {total_length}; "
            "raise data.pack_tokens or lower data.max_length"
        )
    if fill:
        tokens += [pad_id] * fill
        labels += [IGNORE] * fill
        positions += range(fill)
        bounds.append(len(tokens))
    return PackedBatch(
        **_rows(pairs),
        tokens_1S=torch.tensor([tokens]),
        labels_1S=torch.tensor([labels]),
        position_ids_1S=torch.tensor([positions]),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        max_seqlen=max(end - start for start, end in pairwise(bounds)),
    )


def responses_from_flat(values_T: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
    """Lay values of all response positions, row after row, out as right-padded [N, T].

    The order is that of the labels that are not -100, read row by row, in a padded batch as in a
    packed one. Padding is 0; gradients flow to `values_T`.

    Returns:
        (values_NT, mask_NT), T the longest response.

    Raises:
        ValueError: the lengths do not add up to the number of values.
    """
    lengths_N = lengths_N.to(values_T.device)
    if int(lengths_N.sum()) != values_T.numel():
        raise ValueError(
            f"{values_T.numel()} values for responses of {int(lengths_N.sum())} positions"
        )
    longest = int(lengths_N.max())
    mask_NT = torch.arange(longest, device=values_T.device) < lengths_N[:, None]
    values_NT = values_T.new_zeros(mask_NT.shape).masked_scatter(mask_NT, values_T)
    return values_NT, mask_NT


def _sequences(pairs: Sequence[TokenizedPair]) -> list[tuple[tuple[int, ...], TokenizedResponse]]:
    """(prompt, response), all chosen ones first."""
    if not pairs:
        raise ValueError("a batch needs at least one pair")
    return [pair.sequences[side] for side in (0, 1) for pair in pairs]


def ids_and_labels(
    prompt_ids: Sequence[int], response: TokenizedResponse
) -> tuple[list[int], list[int]]:
    """Tokens of prompt and response, and the label at each."""
    ids = [*prompt_ids, *response.ids]
    labels = [IGNORE] * (len(prompt_ids) - 1) + [*response.ids, IGNORE]
    return ids, labels


def _rows(pairs: Sequence[TokenizedPair]) -> dict[str, Any]:
    responses = [response for _, response in _sequences(pairs)]
    chosen_scores = [pair.chosen_score for pair in pairs]
    rejected_scores = [pair.rejected_score for pair in pairs]
    won, lost = given(chosen_scores), given(rejected_scores)
    scored = won is not None and lost is not None
    return {
        "response_lengths_N": torch.tensor([len(response.ids) for response in responses]),
        "complete_N": torch.tensor([response.complete for response in responses]),
        "chosen_score_B": won if scored else None,
        "rejected_score_B": lost if scored else None,
        "weight_B": given([pair.weight for pair in pairs]),
        "margin_B": given([pair.margin for pair in pairs]),
        "chosen_label_B": labels_of(pairs, 0),
        "rejected_label_B": labels_of(pairs, 1),
    }


def labels_of(pairs: Sequence[TokenizedPair], side: int) -> Tensor | None:
    """Labels of the unpaired rows on a side of a batch, bool [B]; None of pairs."""
    labels = [pair.labels[side] for pair in pairs if pair.labels is not None]
    return torch.tensor(labels) if len(labels) == len(pairs) else None


def given(values: Sequence[float | None]) -> Tensor | None:
    """Numbers of the pairs of a batch, float32 [B]; None when any pair has none."""
    return None if None in values else torch.tensor(values, dtype=torch.float32)
