"""Both conversions between Hugging Face and Megatron, from source to published directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.config.model_files import MODEL_CONFIG
from nemo_gdpo.conversion.atomic import check_replaceable
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import hf_specs, megatron_specs, megatron_tensor, to_hf
from nemo_gdpo.conversion.fingerprint import DIST, weights_fingerprint
from nemo_gdpo.conversion.formats.assets import ASSETS
from nemo_gdpo.conversion.formats.base_name import base_name
from nemo_gdpo.conversion.formats.card import read_card
from nemo_gdpo.conversion.formats.hf_export import write_hf
from nemo_gdpo.conversion.formats.hf_source import open_hf
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    open_megatron,
    write_megatron_checkpoint,
)
from nemo_gdpo.conversion.formats.safetensors_writer import MAX_SHARD_BYTES
from nemo_gdpo.conversion.formats.tokenizer_size import check_tokenizer_fits
from nemo_gdpo.conversion.model_config import padded_vocab_size
from nemo_gdpo.progress import progress_bar

VOCAB_DIVISIBLE_BY = 128


def convert_hf_to_megatron(
    source: Path,
    destination: Path,
    *,
    vocab_divisible_by: int = VOCAB_DIVISIBLE_BY,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> CheckpointModel:
    """Convert a Hugging Face directory to a Megatron checkpoint that loads under any mesh.

    An interrupted conversion is continued by the next one of the same weights with the same
    settings.

    Args:
        source: has config.json and safetensors.
        destination: absent, empty, or an earlier conversion.
        vocab_divisible_by: the vocabulary is padded to a multiple of it. Megatron pads anew for the
            tensor-parallel size that it loads with.
        dtype: cast the weights; None keeps them as they are.
        progress: show bars.

    Raises:
        UserError: the source is not convertible exactly, or the destination cannot be written.
    """
    bridge = ModelBridge.from_hf(source)
    hf = open_hf(source, bridge)
    check_tokenizer_fits(source, bridge)
    check_replaceable(destination)
    padded = padded_vocab_size(bridge.config.vocab_size, vocab_divisible_by, 1)
    specs = megatron_specs(bridge, hf, padded_vocab_size=padded, dtype=dtype)
    fingerprint = weights_fingerprint(source, progress=progress)
    model = CheckpointModel(bridge.config, padded, fingerprint)
    with progress_bar(total=len(specs), unit="tensor", label="convert", enabled=progress) as bar:

        def fetch(name: str) -> Tensor:
            bar.update()
            mapping = bridge.by_name[name]
            return megatron_tensor(mapping, bridge, hf, padded_vocab_size=padded, dtype=dtype)

        write_megatron_checkpoint(
            destination,
            model,
            bridge,
            source,
            specs,
            fetch,
            card={"base_model": base_name(source)},
        )
    return model


def identity_of_files(checkpoint: Path) -> list[list[Any]]:
    """The files of a checkpoint as they are now: name, bytes, time of the last change (ns).

    Hashing a training checkpoint would mean reading its optimizer, six times the weights.
    """
    files = [checkpoint / MODEL_CONFIG, *sorted((checkpoint / DIST).iterdir())]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def convert_megatron_to_hf(
    source: Path,
    destination: Path,
    *,
    dtype: torch.dtype | None = None,
    card: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Export a Megatron checkpoint, converted or trained under any mesh, to Hugging Face.

    An interrupted export is continued by the next one of the same checkpoint with the same
    settings.

    Args:
        source: has `dist/`, `model_config.json` and `hf_assets/`.
        destination: absent, empty, or an earlier export.
        dtype: cast the weights; None keeps them as they are.
        card: sections of the model card, see `card.SECTIONS`; they take precedence over those that
            the checkpoint has beside it.
        max_shard_bytes: upper bound of one safetensors file.
        progress: show a bar.

    Raises:
        UserError: the checkpoint is incomplete, damaged or could run code, or the destination
            cannot be written.
    """
    opened = open_megatron(source)
    bridge, weights = opened.bridge, opened.weights
    check_tokenizer_fits(source / ASSETS, bridge)
    specs = hf_specs(bridge, weights, dtype=dtype)

    def read(wanted: Set[str]) -> Iterator[tuple[str, Tensor]]:
        tensors = to_hf(bridge, weights, dtype=dtype, wanted=wanted)
        yield from progress_bar(
            tensors,
            total=len(specs),
            initial=len(specs) - len(wanted),
            unit="tensor",
            label="export",
            enabled=progress,
        )

    write_hf(
        destination,
        bridge.config,
        source / ASSETS,
        specs,
        read,
        key={"source": identity_of_files(source), "dtype": str(dtype)},
        card={**read_card(source), **(card or {})},
        max_shard_bytes=max_shard_bytes,
    )
