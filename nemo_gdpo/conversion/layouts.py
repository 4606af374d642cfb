"""How one Megatron tensor is put together from Hugging Face's, taken apart, and cut over ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_gdpo.conversion.families import Entry, Kind
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError


def _merge_qkv(parts: Sequence[Tensor], config: MegatronModelConfig) -> Tensor:
    """[group][its query heads, its key head, its value head] along dimension 0."""
    rest = parts[0].shape[1:]
    grouped = [part.reshape(config.num_query_groups, -1, *rest) for part in parts]
    return torch.cat(grouped, dim=1).reshape(-1, *rest)


def _split_qkv(merged: Tensor, config: MegatronModelConfig) -> list[Tensor]:
    rest = merged.shape[1:]
    queries = config.query_size // config.num_query_groups
    sizes = [queries, config.kv_channels, config.kv_channels]
    grouped = merged.reshape(config.num_query_groups, sum(sizes), *rest)
    return [part.reshape(-1, *rest) for part in torch.split(grouped, sizes, dim=1)]


def _pad_rows(tensor: Tensor, rows: int) -> Tensor:
    padding = rows - tensor.shape[0]
    if padding == 0:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(padding, *tensor.shape[1:])])


def megatron_shape(
    entry: Entry, config: MegatronModelConfig, padded_vocab_size: int
) -> tuple[int, ...]:
    """Shape of the whole Megatron tensor."""
    shapes = [part.shape(config) for part in entry.parts]
    rows = padded_vocab_size if entry.kind is Kind.VOCAB else sum(shape[0] for shape in shapes)
    return (rows, *shapes[0][1:])


def merge(
    entry: Entry, parts: Sequence[Tensor], config: MegatronModelConfig, padded_vocab_size: int
) -> Tensor:
    """The whole Megatron tensor of an entry.

    Args:
        entry: what it is.
        parts: Hugging Face's tensors, in the entry's order.
        config: the architecture.
        padded_vocab_size: rows of the embedding and of the output layer.
    """
    match entry.kind:
        case Kind.QKV:
            return _merge_qkv(parts, config)
        case Kind.GATE_UP:
            return torch.cat(list(parts))
        case Kind.VOCAB:
            return _pad_rows(parts[0], padded_vocab_size)
        case _:
            return parts[0]


def split(entry: Entry, merged: Tensor, config: MegatronModelConfig) -> list[Tensor]:
    """Hugging Face's tensors of an entry, in its order; the inverse of `merge`."""
    match entry.kind:
        case Kind.QKV:
            return _split_qkv(merged, config)
        case Kind.GATE_UP:
            return list(merged.chunk(2))
        case Kind.VOCAB:
            return [merged[: config.vocab_size]]
        case _:
            return [merged]


def _cut(tensor: Tensor, dim: int, rank: int, size: int, name: str) -> Tensor:
    if tensor.shape[dim] % size:
        raise UserError(
            f"{name}: {tensor.shape[dim]} does not divide over {size} tensor-parallel ranks; "
            "choose another model.tensor_model_parallel_size"
        )
    return tensor.chunk(size, dim=dim)[rank]


def shard_for_rank(
    entry: Entry, tensor: Tensor, config: MegatronModelConfig, tp_rank: int, tp_size: int
) -> Tensor:
    """What a tensor-parallel rank holds of the whole Megatron tensor.

    Args:
        entry: what the tensor is.
        tensor: the whole of it, as `merge` gives it.
        config: the architecture.
        tp_rank: 0 to tp_size - 1.
        tp_size: ranks that share the tensor.

    Raises:
        UserError: it cannot be cut into that many equal pieces.
    """
    match entry.kind:
        case Kind.NORM:
            return tensor
        case Kind.ROW:
            return _cut(tensor, 1, tp_rank, tp_size, entry.name)
        case Kind.GATE_UP:
            halves = (_cut(half, 0, tp_rank, tp_size, entry.name) for half in tensor.chunk(2))
            return torch.cat(list(halves))
        case Kind.QKV:
            if config.num_query_groups % tp_size:
                raise UserError(
                    f"{entry.name}: {config.num_query_groups} key-value groups do not divide over "
                    f"{tp_size} tensor-parallel ranks; choose another "
                    "model.tensor_model_parallel_size"
                )
            return _cut(tensor, 0, tp_rank, tp_size, entry.name)
        case Kind.COLUMN | Kind.VOCAB:
            return _cut(tensor, 0, tp_rank, tp_size, entry.name)
