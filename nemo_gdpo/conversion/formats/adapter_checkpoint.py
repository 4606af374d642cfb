"""A training checkpoint that holds an adapter alone: `adapter.json` says what it is, and of what.

CKPT/adapter.json        rank, alpha, targets; hash and name of the base
CKPT/dist/               A and B of every adapted matrix, and the optimizer
CKPT/model_config.json, CKPT/hf_assets/   of the base, as in any checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.config.model_files import ADAPTER_RECORD
from nemo_gdpo.conversion.adapters import A, AdapterSpec, B, adapted_matrices
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import check_shapes
from nemo_gdpo.conversion.fingerprint import DIST
from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource
from nemo_gdpo.conversion.formats.megatron_io import read_architecture
from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class AdapterRecord:
    """Contents of `adapter.json`."""

    spec: AdapterSpec
    base_sha256: str
    """Fingerprint of the base's weights."""
    base: str
    """What the user called it."""


@dataclass(frozen=True)
class AdapterCheckpoint:
    """An opened checkpoint."""

    record: AdapterRecord
    bridge: ModelBridge
    """Of the base."""
    tensors: DistTensorSource
    """A and B, under their names in Megatron."""


def write_adapter_record(checkpoint: Path, record: AdapterRecord) -> None:
    """Write `adapter.json` into a checkpoint's directory."""
    values = {
        "format_version": FORMAT_VERSION,
        **asdict(record.spec),
        "base_sha256": record.base_sha256,
        "base": record.base,
    }
    (checkpoint / ADAPTER_RECORD).write_text(json.dumps(values, indent=1) + "\n")


def holds_adapter(checkpoint: Path) -> bool:
    """Whether a checkpoint holds an adapter alone."""
    return (checkpoint / ADAPTER_RECORD).is_file()


def _record(values: Mapping[str, Any]) -> AdapterRecord:
    targets = tuple(str(name) for name in values["targets"])
    spec = AdapterSpec(int(values["rank"]), float(values["alpha"]), targets)
    return AdapterRecord(spec, str(values["base_sha256"]), str(values["base"]))


def open_adapter(checkpoint: Path) -> AdapterCheckpoint:
    """Open a checkpoint and compare its tensors with what it says of itself.

    Raises:
        UserError: it is incomplete, damaged, of another version, or could run code.
    """
    path = checkpoint / ADAPTER_RECORD
    values = read_json_object(path)
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of format version {version}, this program reads {FORMAT_VERSION}; restore "
            "the checkpoint"
        )
    try:
        record = _record(values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore the checkpoint") from None
    bridge = ModelBridge(read_architecture(checkpoint).config)
    tensors = DistTensorSource(checkpoint / DIST)
    wanted: dict[str, tuple[int, ...]] = {
        one.megatron_name(matrix): one.shape(matrix, record.spec.rank)
        for one in adapted_matrices(bridge, record.spec)
        for matrix in (A, B)
    }
    check_shapes(tensors.where, wanted, tensors.shapes())
    return AdapterCheckpoint(record, bridge, tensors)
