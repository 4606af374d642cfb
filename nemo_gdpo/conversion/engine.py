"""Walks a model's mappings, both ways, one tensor at a time. Bits are moved, never computed."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.layouts import Slice, TensorMapping, VocabMapping
from nemo_gdpo.errors import UserError


class TensorSource(Protocol):
    """Tensors by name, read when asked for."""

    @property
    def where(self) -> str:
        """Named in errors."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """The type that a tensor is stored in."""

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, on the CPU."""


class SlicedTensorSource(TensorSource, Protocol):
    """Tensors of which a part can be read without the rest."""

    def part(self, name: str, wanted: Slice) -> Tensor:
        """Read a range of one dimension of a tensor, on the CPU."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is still to come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def common_dtype(mapping: TensorMapping, source: TensorSource) -> torch.dtype:
    """The one type of a mapping's Hugging Face tensors.

    Raises:
        UserError: they have several.
    """
    found = {source.dtype(name) for name in mapping.hf_names}
    if len(found) > 1:
        raise UserError(
            f"{source.where}: {', '.join(mapping.hf_names)} have different types "
            f"({', '.join(sorted(map(str, found)))}); convert with --dtype"
        )
    return found.pop()


def megatron_specs(
    bridge: ModelBridge,
    source: TensorSource,
    *,
    padded_vocab_size: int,
    dtype: torch.dtype | None = None,
) -> list[TensorSpec]:
    """Specs of what `megatron_tensor` gives for every mapping, without reading a tensor.

    Args:
        bridge: the model.
        source: Hugging Face's tensors.
        padded_vocab_size: rows of the embedding.
        dtype: type that the tensors are cast to; None keeps each tensor's type.

    Raises:
        UserError: tensors that become one have different types, and no type is given.
    """
    return [
        TensorSpec(
            mapping.name,
            mapping.megatron_shape(bridge.config, padded_vocab_size),
            dtype or common_dtype(mapping, source),
        )
        for mapping in bridge.mappings
    ]


def megatron_tensor(
    mapping: TensorMapping,
    bridge: ModelBridge,
    source: TensorSource,
    *,
    padded_vocab_size: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The complete Megatron tensor of one mapping, from Hugging Face's tensors.

    Args:
        mapping: which tensor.
        bridge: the model.
        source: Hugging Face's tensors.
        padded_vocab_size: rows of the embedding; those beyond the vocabulary are zeros.
        dtype: type to cast to; None keeps the tensor's type.
    """
    target = dtype or common_dtype(mapping, source)
    parts = [source.tensor(name).to(target) for name in mapping.hf_names]
    return mapping.merge(parts, bridge.config, padded_vocab_size)


def rank_tensor(
    mapping: TensorMapping,
    bridge: ModelBridge,
    source: SlicedTensorSource,
    *,
    rows: int,
    tp_rank: int,
    tp_size: int,
) -> Tensor:
    """The part of a mapping's tensor that one tensor-parallel rank holds; nothing else is read.

    Args:
        mapping: which tensor.
        bridge: the model.
        source: Hugging Face's tensors.
        rows: rows of the live parameter; they say how far the vocabulary is padded.
        tp_rank: 0 to tp_size - 1.
        tp_size: ranks that share the tensor.

    Raises:
        UserError: the tensor cannot be cut into that many equal pieces, or not be read.
    """
    common_dtype(mapping, source)
    slices = mapping.rank_slices(bridge.config, tp_rank, tp_size, rows)
    parts = [
        source.tensor(name) if wanted is None else source.part(name, wanted)
        for name, wanted in zip(mapping.hf_names, slices, strict=True)
    ]
    return mapping.merge(parts, bridge.config, rows)


def check_megatron_source(bridge: ModelBridge, source: TensorSource) -> None:
    """Compare the tensors of a Megatron checkpoint with those that the architecture needs.

    Raises:
        UserError: tensors are missing, too many, or of another shape.
    """
    vocab_size = bridge.config.vocab_size
    found = source.shapes()
    wanted: dict[str, tuple[int, ...]] = {}
    for mapping in bridge.mappings:
        shape = mapping.megatron_shape(bridge.config, vocab_size)
        have = found.get(mapping.name)
        # A checkpoint may be padded for any tensor-parallel size: more rows are fine.
        padded = isinstance(mapping, VocabMapping)
        if padded and have is not None and have[0] >= shape[0]:
            shape = (have[0], *shape[1:])
        wanted[mapping.name] = shape
    check_shapes(source.where, wanted, found)


def check_shapes(
    where: str, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    """Refuse tensors that are missing, too many, or of another shape than wanted."""
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        parts = [
            f"{len(names)} tensors are {what}: {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UserError(
            f"{where}: {'; '.join(parts)}; the weights do not belong to the model's configuration: "
            "restore both from the same place"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(
                f"{where}: {name} is {list(found[name])}, and the model's configuration says "
                f"{list(shape)}; restore both from the same place"
            )


def hf_specs(
    bridge: ModelBridge, source: TensorSource, *, dtype: torch.dtype | None = None
) -> list[TensorSpec]:
    """Specs of what `to_hf` gives, in its order, without reading a tensor."""
    return [
        TensorSpec(tensor.name, tensor.shape(bridge.config), dtype or source.dtype(mapping.name))
        for mapping in bridge.mappings
        for tensor in mapping.hf_tensors
    ]


def to_hf(
    bridge: ModelBridge,
    source: TensorSource,
    *,
    dtype: torch.dtype | None = None,
    wanted: Set[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's tensors from a Megatron checkpoint; padding rows stay behind.

    Args:
        bridge: the model.
        source: Megatron's tensors, complete.
        dtype: type to cast to; None keeps each tensor's type.
        wanted: names of the tensors to give; None is all. Others are not read.
    """
    for mapping in bridge.mappings:
        if wanted is not None and wanted.isdisjoint(mapping.hf_names):
            continue
        merged = source.tensor(mapping.name)
        parts = mapping.split(merged, bridge.config)
        for name, part in zip(mapping.hf_names, parts, strict=True):
            if wanted is None or name in wanted:
                yield name, part.to(dtype or part.dtype)
