"""What an update of a run has to compute, from its pairs and the code that cuts its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nemo_gdpo.config.memory import shape_of
from nemo_gdpo.config.model_files import (
    is_megatron_checkpoint,
    megatron_checkpoint_root,
    read_model_config,
)
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.world import model_parallel_size
from nemo_gdpo.conversion.families import read_hf_config
from nemo_gdpo.conversion.formats.megatron_io import read_checkpoint_model
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.data.dataset import PreferenceDataset, collect_arrays
from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.data.tokenize import TokenizeStats
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError
from nemo_gdpo.plan.shape import KNOWN, Shape, read_shape
from nemo_gdpo.plan.speed import Work
from nemo_gdpo.training.batches import BatchBuilder, Planned
from nemo_gdpo.training.mesh import Mesh, layout_of
from nemo_gdpo.training.throughput import FlopCount

ASSUMED_SHARE = 0.5
"""Of `data.max_length`: the length of every sequence where there are no data; half of it prompt."""


@dataclass(frozen=True)
class Architecture:
    """A model's sizes, and what its FLOPs are counted by."""

    shape: Shape
    flops: FlopCount
    source: str
    """Where they are from."""


def architecture_of(config: RunConfig) -> Architecture:
    """The model's architecture: of its files where they can be read, else of a published model.

    Raises:
        UserError: neither is there.
    """
    path = config.model.restore_from_path
    values = None if path is None else read_model_config(path)
    shape = shape_of(config, values)
    if shape is None:
        raise UserError(
            f"model.restore_from_path: no architecture can be read at {path}; give the model's "
            f"directory, or model.architecture={'|'.join(KNOWN)}"
        )
    if path is None or values is None or read_shape(values) is None:
        source = f"{config.model.architecture} as published"
        return Architecture(shape, FlopCount.of(as_megatron(shape)), source)
    return Architecture(shape, FlopCount.of(_read(Path(path))), str(path))


def _read(path: Path) -> MegatronModelConfig:
    root = megatron_checkpoint_root(path) if is_megatron_checkpoint(path) else None
    return read_hf_config(path) if root is None else read_checkpoint_model(root).config


def as_megatron(shape: Shape) -> MegatronModelConfig:
    """An architecture of these sizes; what FLOPs do not depend on is made up."""
    return MegatronModelConfig(
        family="llama",
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_query_groups=shape.groups,
        kv_channels=shape.head,
        vocab_size=shape.vocabulary,
        max_position_embeddings=1,
        rotary_base=1.0,
        layernorm_epsilon=1.0,
    )


def assumed_pairs(config: RunConfig) -> PreferenceDataset:
    """A global batch of pairs that all have the assumed length."""
    length = max(2, int(config.data.max_length * ASSUMED_SHARE))
    prompt = (0,) * (length // 2)
    response = TokenizedResponse((0,) * (length - length // 2), False)
    pairs = [
        TokenizedPair(str(index), prompt, response, response, None, None, {})
        for index in range(config.model.global_batch_size)
    ]
    return PreferenceDataset(
        collect_arrays(pairs), end_token_id=0, pad_token_id=0, stats=TokenizeStats()
    )


def batches_of(config: RunConfig, data: PreferenceDataset, most: int) -> list[list[int]]:
    """Global batches of the first epoch, evenly spread over it.

    Args:
        config: of the run.
        data: its pairs.
        most: batches.

    Raises:
        UserError: a batch has more pairs than there are.
    """
    size = config.model.global_batch_size
    sampler = PreferenceSampler.of(config.data, len(data), data.fingerprint)
    whole = max(1, len(data) // size)
    picked = np.unique(np.linspace(0, whole - 1, min(most, whole)).astype(int))
    return [sampler.global_batch(int(batch) * size, size) for batch in picked]


def work_of(
    config: RunConfig,
    data: PreferenceDataset,
    batches: Sequence[Sequence[int]],
    flops: FlopCount,
    world_size: int,
) -> Work:
    """An update of a run, in the mean over `batches`, cut as training cuts it.

    Args:
        config: with the layout.
        data: the pairs.
        batches: indices of each.
        flops: of the model.
        world_size: ranks.

    Raises:
        UserError: a pair is longer than a packed row.
    """
    copies = world_size // model_parallel_size(config)
    mesh = Mesh(layout_of(config), 0, world_size, 0, copies, torch.device("cpu"))
    builder = BatchBuilder.of(config, data, mesh)
    rows = [_of_batch(builder, data, batch, flops, config) for batch in batches]
    return Work(*np.mean(np.array(rows, dtype=np.float64), axis=0).tolist())


def _of_batch(
    builder: BatchBuilder,
    data: PreferenceDataset,
    batch: Sequence[int],
    flops: FlopCount,
    config: RunConfig,
) -> tuple[float, ...]:
    pairs = [data[index] for index in batch]
    width = 1 if config.data.packing else 2 * config.model.micro_batch_size
    done = builder.plan(batch)
    each = [sum(_forward(one, pairs, flops, builder) for one in share) for share in done]
    attention = [sum(_attention(one, pairs, flops, builder) for one in share) for share in done]
    busiest = each.index(max(each))
    slots = [sum(width * one.length for one in share) for share in done]
    labels = sum(_labels(pair) for pair in pairs)
    prompts = sum(len(pair.prompt_ids) for pair in pairs)
    of_both = sum(len(prompt) for pair in pairs for prompt, _ in pair.sequences)
    return (
        len(pairs), of_both + labels, prompts - len(pairs), labels,
        flops.of_pairs(pairs, prefix_sharing=config.data.prefix_sharing),
        flops.attention_of_pairs(pairs, prefix_sharing=config.data.prefix_sharing),
        sum(slots), each[busiest], attention[busiest], max(slots),
        max(len(share) for share in done),
    )  # fmt: skip


def _labels(pair: TokenizedPair) -> int:
    return len(pair.chosen.ids) + len(pair.rejected.ids)


def _forward(
    planned: Planned, pairs: Sequence[TokenizedPair], flops: FlopCount, builder: BatchBuilder
) -> int:
    """FLOPs of a micro-batch with its padding, forward."""
    inside = [pairs[position] for position in planned.positions]
    if builder.pack_tokens is None:
        rows = 2 * builder.micro_batch_size * flops.forward(planned.length, 0)
        return rows + flops.per_label * sum(_labels(pair) for pair in inside)
    tokens = sum(builder.computed_tokens(pair) for pair in inside)
    # Attention stays within a sequence; projections and MLP run over the whole row.
    done = flops.of_pairs(inside, prefix_sharing=builder.prefix_sharing)
    return done + flops.per_token * (planned.length - tokens)


def _attention(
    planned: Planned, pairs: Sequence[TokenizedPair], flops: FlopCount, builder: BatchBuilder
) -> int:
    """The part of `_forward` that no weight takes part in."""
    if builder.pack_tokens is None:
        return 2 * builder.micro_batch_size * flops.attention(planned.length)
    inside = [pairs[position] for position in planned.positions]
    return flops.attention_of_pairs(inside, prefix_sharing=builder.prefix_sharing)
