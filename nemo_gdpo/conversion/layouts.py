"""Mappings between one Megatron tensor and Hugging Face's: merge, split, and cut over ranks.

A mapping describes one tensor of the model under both names. It merges complete tensors as well as
the slices that one tensor-parallel rank needs, so that a rank never has to read the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError

Shape = Callable[[MegatronModelConfig], tuple[int, ...]]


def always(config: MegatronModelConfig) -> bool:
    """The condition of a tensor that every model of the family has."""
    del config
    return True


def untied(config: MegatronModelConfig) -> bool:
    """The condition of a separate output layer."""
    return not config.tie_word_embeddings


@dataclass(frozen=True)
class Slice:
    """A range of indices of one dimension."""

    dim: int
    start: int
    stop: int
    """First index that is not in it."""


@dataclass(frozen=True)
class HFTensor:
    """One tensor of a Hugging Face checkpoint."""

    name: str
    """Name in the checkpoint; `{layer}` stands for the number of the layer, from 0."""
    shape: Shape


@dataclass(frozen=True)
class TensorMapping(ABC):
    """One tensor of a Megatron checkpoint and the Hugging Face tensors that it is made of."""

    name: str
    """Megatron's name, with one key a layer; `{layer}` counts from 0."""
    hf_tensors: tuple[HFTensor, ...]
    """Sources in the order that the class names."""
    condition: Callable[[MegatronModelConfig], bool] = always
    layer: int | None = None
    """Layer that the names are of; None in a family's table, and for what belongs to no layer."""

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.name

    @property
    def hf_names(self) -> tuple[str, ...]:
        """Hugging Face's names, in order."""
        return tuple(tensor.name for tensor in self.hf_tensors)

    def at_layer(self, layer: int) -> TensorMapping:
        """The same mapping with the names of one layer."""
        tensors = tuple(HFTensor(t.name.format(layer=layer), t.shape) for t in self.hf_tensors)
        return replace(self, name=self.name.format(layer=layer), hf_tensors=tensors, layer=layer)

    def megatron_shape(
        self, config: MegatronModelConfig, padded_vocab_size: int
    ) -> tuple[int, ...]:
        """Shape of the complete Megatron tensor."""
        del padded_vocab_size
        shapes = [tensor.shape(config) for tensor in self.hf_tensors]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def merge(self, parts: Sequence[Tensor], config: MegatronModelConfig, rows: int) -> Tensor:
        """The Megatron tensor, complete or of one rank.

        Args:
            parts: Hugging Face's tensors in order, complete or cut by `rank_slices`.
            config: the architecture.
            rows: rows of the result where it is an embedding; other mappings do not look at it.
        """
        del config, rows
        return parts[0]

    def split(self, merged: Tensor, config: MegatronModelConfig) -> list[Tensor]:
        """Hugging Face's tensors in order; the inverse of `merge` on complete tensors."""
        del config
        return [merged]

    @abstractmethod
    def rank_slices(
        self, config: MegatronModelConfig, tp_rank: int, tp_size: int, rows: int
    ) -> list[Slice | None]:
        """The slice of each Hugging Face tensor that a rank needs; None is all of it.

        Args:
            config: the architecture.
            tp_rank: 0 to tp_size - 1.
            tp_size: ranks that share the Megatron tensor.
            rows: rows of this rank's part where it is an embedding.

        Raises:
            UserError: it cannot be cut into that many equal pieces.
        """

    def _even(self, length: int, dim: int, rank: int, size: int) -> Slice:
        """The rank's piece of a dimension, all pieces of one length."""
        if length % size:
            raise UserError(
                f"{self.name}: {length} does not divide over {size} tensor-parallel ranks; "
                "choose another model.tensor_model_parallel_size"
            )
        return Slice(dim, rank * (length // size), (rank + 1) * (length // size))


@dataclass(frozen=True)
class ReplicatedMapping(TensorMapping):
    """One tensor that every rank holds completely, such as a norm."""

    def rank_slices(
        self, config: MegatronModelConfig, tp_rank: int, tp_size: int, rows: int
    ) -> list[Slice | None]:
        """All of it."""
        del config, tp_rank, tp_size, rows
        return [None]


@dataclass(frozen=True)
class RowParallelMapping(TensorMapping):
    """One matrix whose columns, the inputs of a linear layer, are shared out over the ranks."""

    def rank_slices(
        self, config: MegatronModelConfig, tp_rank: int, tp_size: int, rows: int
    ) -> list[Slice | None]:
        """A range of columns."""
        del rows
        columns = self.hf_tensors[0].shape(config)[1]
        return [self._even(columns, 1, tp_rank, tp_size)]


@dataclass(frozen=True)
class GatedMLPMapping(TensorMapping):
    """Gate above up. Each rank holds its rows of gate above its rows of up."""

    def merge(self, parts: Sequence[Tensor], config: MegatronModelConfig, rows: int) -> Tensor:
        """Gate above up."""
        del config, rows
        return torch.cat(list(parts))

    def split(self, merged: Tensor, config: MegatronModelConfig) -> list[Tensor]:
        """Gate and up."""
        del config
        return list(merged.chunk(2))

    def rank_slices(
        self, config: MegatronModelConfig, tp_rank: int, tp_size: int, rows: int
    ) -> list[Slice | None]:
        """The same rows of both."""
        del rows
        return [self._even(t.shape(config)[0], 0, tp_rank, tp_size) for t in self.hf_tensors]


@dataclass(frozen=True)
class QKVMapping(TensorMapping):
    """Query, key, value: for each key-value group its query heads, its key head, its value head.

    Ranks share the groups, in order.
    """

    def merge(self, parts: Sequence[Tensor], config: MegatronModelConfig, rows: int) -> Tensor:
        """[group][its query heads, its key head, its value head] along dimension 0."""
        del rows
        groups = parts[1].shape[0] // config.kv_channels
        rest = parts[0].shape[1:]
        grouped = [part.reshape(groups, -1, *rest) for part in parts]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)

    def split(self, merged: Tensor, config: MegatronModelConfig) -> list[Tensor]:
        """Query, key and value, each with its heads in order."""
        rest = merged.shape[1:]
        queries = config.query_size // config.num_query_groups
        sizes = [queries, config.kv_channels, config.kv_channels]
        grouped = merged.reshape(config.num_query_groups, sum(sizes), *rest)
        return [part.reshape(-1, *rest) for part in torch.split(grouped, sizes, dim=1)]

    def rank_slices(
        self, config: MegatronModelConfig, tp_rank: int, tp_size: int, rows: int
    ) -> list[Slice | None]:
        """The rows of the rank's groups."""
        del rows
        if config.num_query_groups % tp_size:
            raise UserError(
                f"{self.name}: {config.num_query_groups} key-value groups do not divide over "
                f"{tp_size} tensor-parallel ranks; choose another model.tensor_model_parallel_size"
            )
        return [self._even(t.shape(config)[0], 0, tp_rank, tp_size) for t in self.hf_tensors]


@dataclass(frozen=True)
class VocabMapping(TensorMapping):
    """One row a token; rows of zeros are added at the end. Ranks share the rows."""

    def megatron_shape(
        self, config: MegatronModelConfig, padded_vocab_size: int
    ) -> tuple[int, ...]:
        """Shape with the padding rows."""
        return (padded_vocab_size, *self.hf_tensors[0].shape(config)[1:])

    def merge(self, parts: Sequence[Tensor], config: MegatronModelConfig, rows: int) -> Tensor:
        """The rows there are, then zeros."""
        del config
        missing = rows - parts[0].shape[0]
        if missing == 0:
            return parts[0]
        return torch.cat([parts[0], parts[0].new_zeros(missing, *parts[0].shape[1:])])

    def split(self, merged: Tensor, config: MegatronModelConfig) -> list[Tensor]:
        """The rows that are tokens."""
        return [merged[: config.vocab_size]]

    def rank_slices(
        self, config: MegatronModelConfig, tp_rank: int, tp_size: int, rows: int
    ) -> list[Slice | None]:
        """The rank's rows that are tokens; none at all where it holds padding only."""
        if rows * tp_size < config.vocab_size:
            raise RuntimeError(
                f"{self.name}: {rows * tp_size} rows cannot hold {config.vocab_size} tokens"
            )
        start, stop = (min(edge * rows, config.vocab_size) for edge in (tp_rank, tp_rank + 1))
        return [Slice(0, start, stop)]
