"""This rank's micro-batches, built from the indices of a global batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nemo_gdpo.config.shapes import length_multiple
from nemo_gdpo.data.collate import pack_batch, pad_batch
from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.training.reference_store import ReferenceStore


@dataclass(frozen=True)
class BatchBuilder:
    """Cuts global batches over data-parallel ranks and micro-batches, and lays out tokens.

    Every rank knows every pair, so that all ranks agree on one row length for a global batch
    without talking to each other.
    """

    pairs: Sequence[TokenizedPair]
    pad_token_id: int
    layout: ParallelLayout
    precision: str
    micro_batch_size: int
    packing: bool
    data_rank: int
    data_size: int
    device: torch.device

    def _row_tokens(self, pair: TokenizedPair) -> tuple[int, int]:
        prompt = len(pair.prompt_ids)
        return prompt + len(pair.chosen.ids), prompt + len(pair.rejected.ids)

    def _common_length(self, groups: Sequence[Sequence[int]]) -> int:
        """Row length for all micro-batches of a global batch: padded rows, or one packed row."""
        fold = sum if self.packing else max
        longest = max(
            fold(length for index in group for length in self._row_tokens(self.pairs[index]))
            for group in groups
        )
        multiple = length_multiple(
            tensor=self.layout.tensor,
            context=self.layout.context,
            sequence_parallel=self.layout.sequence_parallel,
            precision=self.precision,
            rows=1 if self.packing else 2 * self.micro_batch_size,
        )
        return math.ceil(longest / multiple) * multiple

    def token_slots(self, indices: Sequence[int]) -> int:
        """Token positions that the global batch `indices` occupies, padding included."""
        filled = self._fill(indices)
        groups = self._groups(filled)
        rows = len(groups) if self.packing else 2 * len(filled)
        return rows * self._common_length(groups)

    def _fill(self, indices: Sequence[int]) -> list[int]:
        """Sentinels replaced by a real pair, whose weight will be zero."""
        stand_in = next(index for index in indices if index != SENTINEL)
        return [stand_in if index == SENTINEL else index for index in indices]

    def build(
        self, indices: Sequence[int], reference: ReferenceStore | None
    ) -> list[PreferenceMicroBatch]:
        """This rank's micro-batches of the global batch `indices` (-1 marks a sentinel).

        The number of indices must be a multiple of micro_batch_size x data_size.
        """
        filled = self._fill(indices)
        length = self._common_length(self._groups(filled))
        batch_indices = range(len(filled))
        return [
            self._micro_batch(
                [filled[index] for index in group],
                [SENTINEL if indices[index] == SENTINEL else index for index in group],
                length,
                reference,
            )
            for group in PreferenceSampler.micro_batches(
                batch_indices, self.data_rank, self.data_size, self.micro_batch_size
            )
        ]

    def _groups(self, filled: Sequence[int]) -> list[list[int]]:
        """The micro-batches of all ranks; which rank gets which does not matter here."""
        return PreferenceSampler.micro_batches(filled, 0, 1, self.micro_batch_size)

    def _micro_batch(
        self,
        group: Sequence[int],
        batch_indices: Sequence[int],
        length: int,
        reference: ReferenceStore | None,
    ) -> PreferenceMicroBatch:
        pairs = [self.pairs[index] for index in group]
        lay_out = pack_batch if self.packing else pad_batch
        rows = lay_out(pairs, length, self.pad_token_id).to(self.device)
        return PreferenceMicroBatch(
            rows=rows,
            batch_index_B=torch.tensor(batch_indices, dtype=torch.int64, device=self.device),
            reference_TC=None if reference is None else reference.columns(group).to(self.device),
        )
