"""Low-rank adapters in numbers: parameters of a rank, and what they and a frozen base keep.

A of one matrix is [rank, inputs], B [outputs, rank]. Of a column-parallel matrix a tensor-parallel
rank has all of A and its part of B, of a row-parallel one its part of A and all of B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_gdpo.plan.shape import Shape

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
"""Column-parallel matrices that read one input: the norm's output."""
ROWS = ("o_proj", "down_proj")
"""Row-parallel ones."""


@dataclass(frozen=True)
class Adapters:
    """Which matrices of a layer have adapters of which rank; all other weights are frozen."""

    rank: int
    targets: tuple[str, ...]
    """By Hugging Face's names."""

    def parameters(self, shape: Shape, tensor: int) -> int:
        """Of one layer, on one of `tensor` ranks."""
        return sum(self.rank * sum(sizes) for sizes in self._sizes(shape, tensor))

    def firsts(self, shape: Shape, tensor: int) -> int:
        """Those of them that are of an A."""
        return sum(self.rank * inputs for inputs, _ in self._sizes(shape, tensor))

    def _sizes(self, shape: Shape, tensor: int) -> Iterator[tuple[int, int]]:
        """Inputs and outputs of each matrix with an adapter, as its adapter has them on a rank."""
        query, key = shape.heads * shape.head, shape.groups * shape.head
        sizes = {
            "q_proj": (shape.hidden, query),
            "k_proj": (shape.hidden, key),
            "v_proj": (shape.hidden, key),
            "o_proj": (query, shape.hidden),
            "gate_proj": (shape.hidden, shape.ffn),
            "up_proj": (shape.hidden, shape.ffn),
            "down_proj": (shape.ffn, shape.hidden),
        }
        for name in self.targets:
            inputs, outputs = sizes[name]
            yield (inputs // tensor, outputs) if name in ROWS else (inputs, outputs // tensor)

    def has(self, names: tuple[str, ...]) -> bool:
        """Whether one of some matrices has an adapter, so that their input is kept."""
        return not set(names).isdisjoint(self.targets)

    def without_mlp(self) -> Adapters:
        """Those of attention alone."""
        mlp = (*MLP, "down_proj")
        return Adapters(self.rank, tuple(name for name in self.targets if name not in mlp))

    def lows(self) -> tuple[int, int]:
        """Numbers of a position between A and B: of column-parallel matrices, of row-parallel."""
        rows = sum(name in ROWS for name in self.targets)
        return self.rank * (len(self.targets) - rows), self.rank * rows
