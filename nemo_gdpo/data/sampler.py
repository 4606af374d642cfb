"""The order of training: one global stream of pair indices, the same for every mesh.

Position k of the stream is in epoch k // N; each epoch is its own seeded permutation. A checkpoint
therefore needs the number of consumed pairs and nothing of the mesh, and any DP size or micro-batch
size cuts the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.errors import UserError

SENTINEL = -1
"""The index that fills up a last, incomplete validation batch: a pair of weight 0."""


@lru_cache(maxsize=8)
def epoch_order(num_pairs: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The permutation of one epoch, a function of its arguments only."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(num_pairs)
    order.setflags(write=False)
    return order


class PreferenceSampler:
    """Global batches from a seed, with a position that can be saved.

    Args:
        num_pairs: pairs in the data set.
        seed: not negative.
        fingerprint: of the data set; a saved position of another one is refused.
        together: pairs of a group, which stand one after the other and stay so; 1: each by itself.
    """

    def __init__(self, num_pairs: int, seed: int, fingerprint: str, together: int = 1) -> None:
        if num_pairs < 1:
            raise UserError("the data set has no pair; give data.train_path a file with pairs")
        if seed < 0:
            raise UserError(f"data.seed={seed}: it must not be negative; choose 0 or more")
        if num_pairs % together:
            raise UserError(
                f"data.group_size={2 * together}: {num_pairs} pairs are no whole number of groups "
                f"of {together} pairs; give the data that were made with this size"
            )
        self.num_pairs = num_pairs
        self.together = together
        self.seed = seed
        self.fingerprint = fingerprint
        self.consumed_pairs = 0

    @classmethod
    def of(cls, data: DataConfig, num_pairs: int, fingerprint: str) -> PreferenceSampler:
        """The order of a run's training pairs."""
        return cls(num_pairs, data.seed, fingerprint, data.pairs_of_group)

    def global_batch(self, consumed: int, global_batch_size: int) -> list[int]:
        """The indices at positions consumed .. consumed + global_batch_size - 1.

        A batch that straddles two epochs takes the end of one and the beginning of the next, so
        that a pair can be in it twice.

        Raises:
            UserError: more pairs in a batch than in the data set.
        """
        if not 1 <= global_batch_size <= self.num_pairs:
            raise UserError(
                f"model.global_batch_size={global_batch_size}, the data set has {self.num_pairs} "
                "pairs; lower the batch size or give more data"
            )
        batch: list[int] = []
        for epoch in range(
            consumed // self.num_pairs, (consumed + global_batch_size - 1) // self.num_pairs + 1
        ):
            order = self._order(epoch)
            start = max(consumed - epoch * self.num_pairs, 0)
            stop = min(consumed + global_batch_size - epoch * self.num_pairs, self.num_pairs)
            batch += order[start:stop].tolist()
        return batch

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The pairs of one epoch: a permutation of groups, each in the order of the file."""
        groups = epoch_order(self.num_pairs // self.together, self.seed, epoch)
        return (groups[:, None] * self.together + np.arange(self.together)).reshape(-1)

    def next_global_batch(self, global_batch_size: int) -> list[int]:
        """The batch at the current position; the position moves on."""
        batch = self.global_batch(self.consumed_pairs, global_batch_size)
        self.consumed_pairs += global_batch_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "consumed_pairs": self.consumed_pairs,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "num_pairs": self.num_pairs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            UserError: the position belongs to another data set or seed.
        """
        for key, mine, remedy in (
            (
                "fingerprint",
                self.fingerprint,
                "give the data this run began with, or start a new run",
            ),
            ("num_pairs", self.num_pairs, "give the data this run began with, or start a new run"),
            ("seed", self.seed, f"set data.seed={state['seed']}, or start a new run"),
        ):
            if state[key] != mine:
                raise UserError(
                    f"resume: the checkpoint's data order has {key} {state[key]}, this run has "
                    f"{mine}; {remedy}"
                )
        self.consumed_pairs = int(state["consumed_pairs"])

    @staticmethod
    def micro_batches(
        indices: Sequence[int], dp_rank: int, dp_size: int, micro_batch_size: int
    ) -> list[list[int]]:
        """One rank's share of a global batch, in micro-batches.

        Consecutive micro-batches go to consecutive ranks. The shares of all ranks together are
        exactly the global batch, whatever dp_size is.

        Raises:
            UserError: the batch does not divide.
        """
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"rank {dp_rank} of {dp_size}")
        step = dp_size * micro_batch_size
        if micro_batch_size < 1 or len(indices) % step:
            raise UserError(
                f"model.global_batch_size={len(indices)} does not divide into {dp_size} "
                f"data-parallel ranks of micro-batches of {micro_batch_size}; make it a multiple "
                f"of {step}"
            )
        first = dp_rank * micro_batch_size
        return [
            list(indices[start + first : start + first + micro_batch_size])
            for start in range(0, len(indices), step)
        ]

    def validation_batches(
        self, global_batch_size: int, limit_batches: int | None = None
    ) -> Iterator[list[int]]:
        """Every pair once, in order; the last batch is filled up with `SENTINEL`."""
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size {global_batch_size}")
        count = -(-self.num_pairs // global_batch_size)
        for batch in range(count if limit_batches is None else min(count, limit_batches)):
            start = batch * global_batch_size
            stop = min(start + global_batch_size, self.num_pairs)
            yield [*range(start, stop), *[SENTINEL] * (start + global_batch_size - stop)]
