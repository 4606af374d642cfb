"""Writes a Hugging Face directory from a Megatron checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo import __version__
from nemo_gdpo.conversion.atomic import staged_directory
from nemo_gdpo.conversion.engine import TensorSpec
from nemo_gdpo.conversion.families import read_hf_config
from nemo_gdpo.conversion.formats.assets import (
    CONFIG,
    README,
    base_licence,
    copy_assets,
    has_chat_template,
)
from nemo_gdpo.conversion.formats.card import render_card, usage_of
from nemo_gdpo.conversion.formats.safetensors_writer import MAX_SHARD_BYTES, write_shards
from nemo_gdpo.conversion.model_config import MegatronModelConfig, read_json_object
from nemo_gdpo.errors import UserError

FORMAT_VERSION = 1
"""Version of the way that shards are written; an export by another version is not continued."""


def _type_name(spec: TensorSpec) -> str:
    return str(spec.dtype).removeprefix("torch.")


def _state_dtype(config_file: Path, specs: Sequence[TensorSpec]) -> None:
    """Say in config.json which type the weights have: transformers casts to what it says."""
    values = read_json_object(config_file)
    found = {_type_name(spec) for spec in specs}
    # Mixed types: state the widest, so that loading loses nothing.
    widest = max(found, key=["float16", "bfloat16", "float32", "float64"].index)
    key = "dtype" if "dtype" in values else "torch_dtype"  # the second is understood by all
    if values.get(key) == widest:
        return
    values[key] = widest
    config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_hf(
    destination: Path,
    config: MegatronModelConfig,
    assets: Path,
    specs: Sequence[TensorSpec],
    read: Callable[[Set[str]], Iterator[tuple[str, Tensor]]],
    *,
    key: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights, configs, tokenizer and model card; all of it appears, or nothing.

    Args:
        destination: absent, empty, or an earlier export.
        config: the architecture; has to be what the assets' config.json says.
        assets: configs and tokenizer.
        specs: all of Hugging Face's tensors, in order.
        read: (names) -> (name, tensor) of just those, in that order, read one by one.
        key: what the tensors depend on, as plain JSON; an interrupted export with the same key is
            continued.
        card: model card, see `card.SECTIONS`.
        max_shard_bytes: upper bound of one safetensors file.

    Raises:
        UserError: the assets belong to another model, or the destination cannot be written.
    """
    if read_hf_config(assets) != config:
        raise UserError(
            f"{assets / CONFIG} describes another model than the checkpoint's model_config.json; "
            "restore both from the same place"
        )
    stated = {
        "licence": base_licence(assets),
        "usage": usage_of(chat=has_chat_template(assets)),
        "precision": f"weights in {', '.join(sorted({_type_name(spec) for spec in specs}))}",
        "versions": {"nemo_gdpo": __version__, "torch": str(torch.__version__)},
        **(card or {}),
    }
    expected = sum(spec.nbytes for spec in specs)
    key = {**key, "export": FORMAT_VERSION, "max_shard_bytes": max_shard_bytes}
    with staged_directory(
        destination, kind="hugging_face", key=key, expected_bytes=expected
    ) as staging:
        copy_assets(assets, staging.path)
        _state_dtype(staging.path / CONFIG, specs)
        (staging.path / README).write_text(render_card(stated), encoding="utf-8")
        write_shards(
            staging.path,
            specs,
            read,
            max_shard_bytes=max_shard_bytes,
            progress_file=staging.progress_file,
        )
