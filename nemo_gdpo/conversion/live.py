"""Fill the parameters of a live megatron-core GPT model from a Hugging Face directory."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from nemo_gdpo.conversion.engine import Slot, TensorSource, megatron_tensor, slots_of
from nemo_gdpo.conversion.families import Kind, family_of
from nemo_gdpo.conversion.formats.hf_source import open_hf
from nemo_gdpo.conversion.layouts import shard_for_rank
from nemo_gdpo.conversion.model_config import MegatronModelConfig

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")
EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"


def canonical_name(name: str, config: MegatronModelConfig, layer_offset: int) -> str:
    """A live parameter's name -> its name in a distributed checkpoint.

    Args:
        name: of megatron's Transformer Engine layers or of its local ones, relative to the GPT
            model.
        config: the architecture.
        layer_offset: layers before this model chunk.
    """
    matched = _LAYER.match(name)
    if matched is None:
        # On the last pipeline stage a tied output layer is a parameter of its own.
        return EMBEDDING if name == OUTPUT and config.tie_word_embeddings else name
    layer, inner = int(matched[1]) + layer_offset, matched[2]
    return f"decoder.layers.{layer}.{family_of(config).local_names.get(inner, inner)}"


def rank_tensor(
    slot: Slot,
    config: MegatronModelConfig,
    source: TensorSource,
    *,
    local_rows: int,
    tp_rank: int,
    tp_size: int,
) -> Tensor:
    """What one tensor-parallel rank holds of a slot.

    Args:
        slot: which tensor.
        config: the architecture.
        source: Hugging Face's tensors.
        local_rows: rows of the live parameter; they say how far the vocabulary is padded.
        tp_rank: 0 to tp_size - 1.
        tp_size: ranks that share a tensor.
    """
    padded = local_rows * tp_size if slot.entry.kind is Kind.VOCAB else config.vocab_size
    if padded < config.vocab_size:
        raise RuntimeError(f"{slot.name}: {padded} rows cannot hold {config.vocab_size} tokens")
    whole = megatron_tensor(slot, config, source, padded_vocab_size=padded)
    return shard_for_rank(slot.entry, whole, config, tp_rank, tp_size)


@torch.no_grad()
def load_hf_into_model(
    model: nn.Module,
    hf_dir: Path,
    config: MegatronModelConfig,
    *,
    layer_offset: int = 0,
    tp_rank: int = 0,
    tp_size: int = 1,
) -> None:
    """Fill every parameter of one model chunk, each exactly once. Values are cast to its type.

    Args:
        model: megatron-core's GPTModel (bare), whole or one pipeline chunk of it.
        hf_dir: a Hugging Face directory with safetensors.
        config: its architecture.
        layer_offset: layers before this chunk.
        tp_rank: this rank's place in its tensor-parallel group.
        tp_size: size of that group.

    Raises:
        UserError: the directory is incomplete or does not fit the architecture.
        RuntimeError: the live model has a parameter that the family's table does not know, lacks
            one that it does, or has one of another shape.
    """
    source = open_hf(hf_dir, config)
    slots = {slot.name: slot for slot in slots_of(config)}
    filled: set[str] = set()
    for name, parameter in model.named_parameters():
        canonical = canonical_name(name, config, layer_offset)
        if canonical not in slots:
            raise RuntimeError(
                f"parameter {name} ({canonical}) is not in the {config.family} table"
            )
        if canonical in filled and name != OUTPUT:
            raise RuntimeError(f"parameter {name}: {canonical} is filled twice")
        value = rank_tensor(
            slots[canonical], config, source,
            local_rows=parameter.shape[0], tp_rank=tp_rank, tp_size=tp_size,
        )  # fmt: skip
        if value.shape != parameter.shape:
            raise RuntimeError(
                f"parameter {name} is {list(parameter.shape)}, the checkpoint gives "
                f"{list(value.shape)}"
            )
        parameter.copy_(value)
        filled.add(canonical)
    _check_layers_complete(filled, slots)


def _check_layers_complete(filled: set[str], slots: dict[str, Slot]) -> None:
    layers = {slots[name].layer for name in filled} - {None}
    lacking = sorted(s.name for s in slots.values() if s.layer in layers and s.name not in filled)
    if lacking:
        raise RuntimeError(f"the model has no parameters for {', '.join(lacking[:5])}")
