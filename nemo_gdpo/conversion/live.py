"""Fill the parameters of a live megatron-core GPT model from a Hugging Face directory.

A rank opens the headers of all shards and reads only the bytes of its slices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from nemo_gdpo.conversion.adapters import is_of_adapter
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import SlicedTensorSource, common_dtype, rank_tensor
from nemo_gdpo.conversion.formats.hf_source import HuggingFaceSource, open_hf
from nemo_gdpo.conversion.formats.tokenizer_size import check_tokenizer_fits

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")
EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"


def canonical_name(name: str, bridge: ModelBridge, layer_offset: int) -> str:
    """A live parameter's name -> its name in a distributed checkpoint.

    Args:
        name: name in megatron's Transformer Engine layers or in its local ones, relative to the
            GPT model.
        bridge: the model.
        layer_offset: layers before this model chunk.
    """
    matched = _LAYER.match(name)
    if matched is None:
        # On the last pipeline stage a tied output layer is a separate parameter.
        return EMBEDDING if name == OUTPUT and bridge.config.tie_word_embeddings else name
    layer, inner = int(matched[1]) + layer_offset, matched[2]
    return f"decoder.layers.{layer}.{bridge.family.local_names.get(inner, inner)}"


def open_loadable(directory: Path) -> tuple[ModelBridge, HuggingFaceSource]:
    """Open a Hugging Face directory; refuse what a conversion would refuse.

    Raises:
        UserError: it is incomplete or damaged, or describes a model that is not built.
    """
    bridge = ModelBridge.from_hf(directory)
    source = open_hf(directory, bridge)
    check_tokenizer_fits(directory, bridge)
    for mapping in bridge.mappings:
        common_dtype(mapping, source)
    return bridge, source


@torch.no_grad()
def load_hf_into_model(
    model: nn.Module,
    source: SlicedTensorSource,
    bridge: ModelBridge,
    *,
    layer_offset: int = 0,
    tp_rank: int = 0,
    tp_size: int = 1,
) -> None:
    """Fill every parameter of one model chunk, each exactly once. Values are cast to its type.

    Adapters stay as they are.

    Args:
        model: megatron-core's GPTModel (bare), complete or one pipeline chunk of it.
        source: the directory as `formats.hf_source.open_hf` gives it.
        bridge: the model that it holds.
        layer_offset: layers before this chunk.
        tp_rank: this rank's place in its tensor-parallel group.
        tp_size: size of that group.

    Raises:
        UserError: a shard cannot be read, or a tensor not be cut over that many ranks.
        RuntimeError: the live model has a parameter that the family's table does not know, lacks
            one that it does, or has one of another shape.
    """
    filled: set[str] = set()
    for name, parameter in model.named_parameters():
        if is_of_adapter(name):
            continue
        canonical = canonical_name(name, bridge, layer_offset)
        if canonical not in bridge.by_name:
            raise RuntimeError(
                f"parameter {name} ({canonical}) is not in the {bridge.config.family} table"
            )
        if canonical in filled and name != OUTPUT:
            raise RuntimeError(f"parameter {name}: {canonical} is filled twice")
        value = rank_tensor(
            bridge.by_name[canonical],
            bridge,
            source,
            rows=parameter.shape[0],
            tp_rank=tp_rank,
            tp_size=tp_size,
        )
        if value.shape != parameter.shape:
            raise RuntimeError(
                f"parameter {name} is {list(parameter.shape)}, the checkpoint gives "
                f"{list(value.shape)}"
            )
        parameter.copy_(value)
        filled.add(canonical)
    _check_layers_complete(filled, bridge)


def _check_layers_complete(filled: Iterable[str], bridge: ModelBridge) -> None:
    present = set(filled)
    layers = {bridge.by_name[name].layer for name in present} - {None}
    lacking = sorted(
        mapping.name
        for mapping in bridge.mappings
        if mapping.layer in layers and mapping.name not in present
    )
    if lacking:
        raise RuntimeError(f"the model has no parameters for {', '.join(lacking[:5])}")
