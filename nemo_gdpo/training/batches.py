"""This rank's micro-batches, built from the indices of a global batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from nemo_gdpo.config.packing import length_in_row, packed_row, up_to
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.shapes import length_multiple, sequence_multiple
from nemo_gdpo.data.bins import level_bins, share_bins
from nemo_gdpo.data.collate import PackedBatch, PaddedBatch, pack_batch, pad_batch
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.shared import share_batch
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.packing import too_long
from nemo_gdpo.training.reference_store import ReferenceStore


@dataclass(frozen=True)
class Planned:
    """A micro-batch before it is laid out."""

    positions: tuple[int, ...]
    """Of its pairs in the global batch; empty for one that only fills up the schedule."""
    length: int
    """Of its rows."""


@dataclass(frozen=True)
class BatchBuilder:
    """Cuts global batches over data-parallel ranks and micro-batches, and lays out tokens.

    Every rank knows every pair, so that all ranks agree on the cut without talking to each other.

    Padded: micro-batches of `micro_batch_size` pairs, rows as long as the longest of the global
    batch. Packed: as few rows as hold the batch within `pack_tokens`, about equally full, and as
    many on every rank. A row is as long as it needs to be; the stages of a pipeline, which pass on
    buffers of one size, have rows as long as the longest of their replica.
    """

    pairs: Sequence[TokenizedPair]
    pad_token_id: int
    layout: ParallelLayout
    precision: str
    micro_batch_size: int
    pack_tokens: int | None
    """Positions of a packed row at most, see `packed_row`; None lays out padded rows."""
    prefix_sharing: bool
    """Packed rows hold each prompt once."""
    data_rank: int
    data_size: int
    device: torch.device
    together: int = 1
    """Pairs of a group, which stay in one micro-batch; they are neighbours in a global batch."""
    oracle: Callable[[Sequence[int]], torch.Tensor] | None = None
    """What people who were asked say of pairs, by their indices, int8; None: the data says it."""

    @classmethod
    def of(cls, config: RunConfig, data: PreferenceDataset, mesh: Mesh) -> BatchBuilder:
        """The builder of a run's split on this rank."""
        return cls(
            pairs=data,
            pad_token_id=data.pad_token_id,
            layout=mesh.layout,
            precision=config.precision,
            micro_batch_size=config.model.micro_batch_size,
            pack_tokens=packed_row(config),
            prefix_sharing=config.data.prefix_sharing,
            data_rank=mesh.data_rank,
            data_size=mesh.data_size,
            device=mesh.device,
            together=config.data.pairs_of_group,
        )

    @cached_property
    def _multiple(self) -> int:
        return length_multiple(
            tensor=self.layout.tensor,
            context=self.layout.context,
            sequence_parallel=self.layout.sequence_parallel,
            precision=self.precision,
            rows=self._rows,
        )

    @property
    def _rows(self) -> int:
        """Of a micro-batch."""
        return 2 * self.micro_batch_size if self.pack_tokens is None else 1

    def _whole(self, length: int) -> int:
        return up_to(self._multiple, length)

    def _sequences(self, pair: TokenizedPair) -> tuple[int, int]:
        """Tokens of both sequences of a pair."""
        first, second = (len(prompt) + len(said.ids) for prompt, said in pair.sequences)
        return first, second

    def packed_length(self, pair: TokenizedPair) -> int:
        """Positions that a pair takes in a packed row."""
        return length_in_row(
            tuple(len(prompt) for prompt, _ in pair.sequences),
            len(pair.chosen.ids), len(pair.rejected.ids),
            context=self.layout.context, prefix_sharing=self.prefix_sharing,
        )  # fmt: skip

    def computed_tokens(self, pair: TokenizedPair) -> int:
        """Tokens that are computed of a pair: of a shared prompt, the last one twice."""
        return self.packed_length(pair) if self.prefix_sharing else sum(self._sequences(pair))

    # -- who gets what ---------------------------------------------------------------------------

    def plan(self, indices: Sequence[int]) -> list[list[Planned]]:
        """Micro-batches of each data-parallel rank, for the global batch `indices`.

        Raises:
            UserError: a pair is longer than a packed row, or the batch cannot be divided.
        """
        if self.pack_tokens is None:
            return self._padded(indices)
        capacity = self.pack_tokens
        groups = self._groups(indices)
        lengths = [
            sum(self.packed_length(self.pairs[indices[position]]) for position in group)
            for group in groups
        ]
        for group, length in zip(groups, lengths, strict=True):
            if length > capacity:
                pair_id = self.pairs[indices[group[0]]].id
                raise too_long(pair_id, length, capacity, self._multiple, together=self.together)
        stages, chunks = self.layout.pipeline, self.layout.virtual_pipeline or 1
        rows = level_bins(
            lengths, capacity,
            # Interleaved stages take micro-batches in groups of as many as there are stages.
            multiple=self.data_size * (stages if chunks > 1 else 1),
            # With fewer than stages, some would always wait.
            least=min(self.data_size * stages, len(groups)),
        )  # fmt: skip
        loads = [self._whole(max(1, sum(lengths[item] for item in row))) for row in rows]
        found = []
        for share in share_bins(loads, self.data_size):
            longest = max(loads[row] for row in share)
            found.append(
                [
                    Planned(
                        tuple(position for item in sorted(rows[row]) for position in groups[item]),
                        longest if stages > 1 else loads[row],
                    )
                    for row in share
                ]
            )
        return found

    def _groups(self, indices: Sequence[int]) -> list[list[int]]:
        """Positions of the real pairs, those of a group together."""
        blocks = (
            range(start, min(start + self.together, len(indices)))
            for start in range(0, len(indices), self.together)
        )
        found = ([at for at in block if indices[at] != SENTINEL] for block in blocks)
        return [group for group in found if group]

    def _padded(self, indices: Sequence[int]) -> list[list[Planned]]:
        filled = self._fill(indices)
        longest = max(max(self._sequences(self.pairs[index])) for index in filled)
        return [
            [
                Planned(tuple(positions), self._whole(longest))
                for positions in PreferenceSampler.micro_batches(
                    range(len(indices)), rank, self.data_size, self.micro_batch_size
                )
            ]
            for rank in range(self.data_size)
        ]

    def token_slots(self, indices: Sequence[int]) -> int:
        """Token positions that the global batch `indices` occupies, padding included."""
        return sum(self._rows * one.length for share in self.plan(indices) for one in share)

    def _fill(self, indices: Sequence[int]) -> list[int]:
        """Sentinels replaced by a real pair, whose weight will be zero."""
        stand_in = self._stand_in(indices)
        return [stand_in if index == SENTINEL else index for index in indices]

    def _stand_in(self, indices: Sequence[int]) -> int:
        real = [index for index in indices if index != SENTINEL]
        return min(real, key=lambda index: self.packed_length(self.pairs[index]))

    # -- the tensors -----------------------------------------------------------------------------

    def build(
        self, indices: Sequence[int], reference: ReferenceStore | None
    ) -> list[PreferenceMicroBatch]:
        """This rank's micro-batches of the global batch `indices` (-1 marks a sentinel).

        Raises:
            UserError: see `plan`.
        """
        filled = self._fill(indices)
        return [
            self._micro_batch(planned, indices, filled, reference)
            for planned in self.plan(indices)[self.data_rank]
        ]

    def _micro_batch(
        self,
        planned: Planned,
        indices: Sequence[int],
        filled: Sequence[int],
        reference: ReferenceStore | None,
    ) -> PreferenceMicroBatch:
        group = [filled[position] for position in planned.positions]
        marks = [
            SENTINEL if indices[position] == SENTINEL else position
            for position in planned.positions
        ]
        if not group:
            group, marks = [self._stand_in(indices)], [SENTINEL]
        rows = self._lay_out([self.pairs[index] for index in group], planned.length)
        return PreferenceMicroBatch(
            rows=rows.to(self.device),
            batch_index_B=torch.tensor(marks, dtype=torch.int64, device=self.device),
            reference_TC=None if reference is None else reference.columns(group).to(self.device),
            pairs_of_group=self.together,
            oracle_B=None if self.oracle is None else self.oracle(group).to(self.device),
        )

    def _lay_out(self, pairs: Sequence[TokenizedPair], length: int) -> PaddedBatch | PackedBatch:
        if self.pack_tokens is None:
            return pad_batch(pairs, length, self.pad_token_id)
        if self.prefix_sharing:
            return share_batch(pairs, length, self.pad_token_id)
        each = sequence_multiple(self.layout.context)
        return pack_batch(pairs, length, self.pad_token_id, multiple=each)
