"""A Megatron checkpoint on disk, converted or trained: one layout.

CKPT/dist/               weights (and, in training, the optimizer): megatron-core's format
CKPT/model_config.json   the architecture, the padded vocabulary, where the weights came from
CKPT/hf_assets/          config.json, tokenizer, chat template: all that an export needs
CKPT/model_card.json     what is known for the model card of an export
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_gdpo.config.model_files import ADAPTER_RECORD, MODEL_CONFIG
from nemo_gdpo.conversion.atomic import staged_directory
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import TensorSpec, check_megatron_source
from nemo_gdpo.conversion.fingerprint import DIST
from nemo_gdpo.conversion.formats.assets import ASSETS, copy_assets
from nemo_gdpo.conversion.formats.card import write_card
from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource
from nemo_gdpo.conversion.formats.dist_writer import write_dist_checkpoint
from nemo_gdpo.conversion.model_config import MegatronModelConfig, read_json_object
from nemo_gdpo.errors import UserError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointModel:
    """Contents of `model_config.json`."""

    config: MegatronModelConfig
    padded_vocab_size: int
    """Rows of the embedding in `dist/`."""
    source_sha256: str | None
    """`weights_fingerprint` of the directory that the weights, or training, started from."""


@dataclass(frozen=True)
class MegatronCheckpoint:
    """An opened checkpoint."""

    model: CheckpointModel
    bridge: ModelBridge
    weights: DistTensorSource


def write_checkpoint_assets(
    directory: Path,
    model: CheckpointModel,
    hf_assets: Path,
    *,
    chat_template: str | None = None,
) -> None:
    """Write `model_config.json` and `hf_assets/` into a checkpoint's directory.

    Args:
        directory: exists.
        model: what to say about the model.
        hf_assets: a Hugging Face directory, or another checkpoint's `hf_assets`.
        chat_template: what the model was trained with, where it is not that of `hf_assets`.
    """
    values = {
        "format_version": FORMAT_VERSION,
        **model.config.to_dict(),
        "padded_vocab_size": model.padded_vocab_size,
        "source_sha256": model.source_sha256,
    }
    (directory / MODEL_CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    copy_assets(hf_assets, directory / ASSETS, with_readme=True, chat_template=chat_template)


def read_checkpoint_model(checkpoint: Path) -> CheckpointModel:
    """Read `model_config.json` of a checkpoint that holds a model.

    Raises:
        UserError: it is missing, damaged, or of another version; or the checkpoint holds an adapter
            alone.
    """
    if (checkpoint / ADAPTER_RECORD).is_file():
        raise UserError(
            f"{checkpoint} holds an adapter alone, without the model that it belongs to; merge "
            f"both: nemo-gdpo convert megatron-to-hf {checkpoint} DIRECTORY --base BASE"
        )
    return read_architecture(checkpoint)


def read_architecture(checkpoint: Path) -> CheckpointModel:
    """Read `model_config.json`, whatever else is there.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = checkpoint / MODEL_CONFIG
    values = read_json_object(path)
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of format version {version}, this program reads {FORMAT_VERSION}; convert "
            "the model again"
        )
    padded, source = values.pop("padded_vocab_size", None), values.pop("source_sha256", None)
    config = MegatronModelConfig.from_dict(values, path)
    if not isinstance(padded, int) or padded < config.vocab_size:
        raise UserError(
            f"{path}: padded_vocab_size is {padded!r}, and the vocabulary has {config.vocab_size} "
            "tokens; convert the model again"
        )
    return CheckpointModel(config, padded, None if source is None else str(source))


def write_megatron_checkpoint(
    destination: Path,
    model: CheckpointModel,
    bridge: ModelBridge,
    hf_assets: Path,
    specs: Sequence[TensorSpec],
    fetch: Callable[[str], Tensor],
    *,
    card: Mapping[str, Any],
) -> None:
    """Write a converted model; it appears completely or not at all.

    Args:
        destination: absent, empty, or an earlier conversion.
        model: what to say about it.
        bridge: its tensors.
        hf_assets: where configs and tokenizer are copied from.
        specs: all tensors, complete, under Megatron's names.
        fetch: reads one of them; called once for each that an interrupted conversion of the same
            weights did not finish.
        card: model card of an export, see `card.SECTIONS`.

    Raises:
        UserError: the destination holds something else, or cannot be written.
    """
    expected = sum(spec.nbytes for spec in specs)
    key = {
        "import": FORMAT_VERSION,
        "config": model.config.to_dict(),
        "source": model.source_sha256,
        "tensors": [[spec.name, list(spec.shape), str(spec.dtype)] for spec in specs],
    }
    with staged_directory(
        destination, kind="megatron", key=key, expected_bytes=expected
    ) as staging:
        write_checkpoint_assets(staging.path, model, hf_assets)
        write_card(staging.path, card)
        write_dist_checkpoint(
            staging.path / DIST, specs, fetch, bridge.extra_states, staging.progress_file
        )


def open_megatron(checkpoint: Path) -> MegatronCheckpoint:
    """Open a checkpoint and compare its tensors with its architecture. Builds no model.

    Raises:
        UserError: it is incomplete, damaged, or could run code.
    """
    model = read_checkpoint_model(checkpoint)
    bridge = ModelBridge(model.config)
    source = DistTensorSource(checkpoint / DIST)
    check_megatron_source(bridge, source)
    return MegatronCheckpoint(model, bridge, source)
