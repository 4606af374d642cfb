"""Exports an adapter: merged with its base as a Hugging Face model, or alone in PEFT's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.config.model_files import is_megatron_checkpoint
from nemo_gdpo.conversion.adapters import WEIGHT, A, AdaptedMatrix, B, adapted_matrices
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.convert import identity_of_files
from nemo_gdpo.conversion.engine import TensorSource, TensorSpec, to_hf
from nemo_gdpo.conversion.formats.adapter_checkpoint import AdapterCheckpoint, open_adapter
from nemo_gdpo.conversion.formats.assets import ASSETS
from nemo_gdpo.conversion.formats.card import read_card
from nemo_gdpo.conversion.formats.hf_export import write_hf
from nemo_gdpo.conversion.formats.hf_source import open_hf
from nemo_gdpo.conversion.formats.megatron_io import open_megatron
from nemo_gdpo.conversion.formats.peft import write_peft
from nemo_gdpo.conversion.formats.safetensors_writer import MAX_SHARD_BYTES
from nemo_gdpo.conversion.resolve import fingerprint_of, resolve_checkpoint
from nemo_gdpo.errors import UserError
from nemo_gdpo.progress import progress_bar


@dataclass(frozen=True)
class _Base:
    """The base's tensors under Hugging Face's names, read one by one."""

    bridge: ModelBridge
    source: TensorSource
    is_hf: bool

    def tensors(self, wanted: Set[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the wanted ones, in the order of the table, in their stored type."""
        if not self.is_hf:
            yield from to_hf(self.bridge, self.source, wanted=wanted)
            return
        for mapping in self.bridge.mappings:
            for name in mapping.hf_names:
                if name in wanted:
                    yield name, self.source.tensor(name)


def _open_base(path: Path, adapter: AdapterCheckpoint) -> _Base:
    """Open the model that an adapter belongs to.

    Raises:
        UserError: it is another one, or cannot be read.
    """
    directory = path
    if is_megatron_checkpoint(path) or path.is_file():
        directory = resolve_checkpoint(path)
    found, wanted = fingerprint_of(directory), adapter.record.base_sha256
    if found != wanted:
        raise UserError(
            f"{path} is not the base of this adapter (weights {found[:12]}, the adapter is of "
            f"{wanted[:12]}, {adapter.record.base}); give the model that it was trained on"
        )
    if is_megatron_checkpoint(directory):
        return _Base(adapter.bridge, open_megatron(directory).weights, is_hf=False)
    return _Base(adapter.bridge, open_hf(directory, adapter.bridge), is_hf=True)


def merged(weight: Tensor, adapter: AdapterCheckpoint, one: AdaptedMatrix) -> Tensor:
    """`weight + scale * B A`, added in float32 and rounded once to the type of `weight`."""
    low, high = (adapter.tensors.tensor(one.megatron_name(name)).float() for name in (A, B))
    change = torch.mm(high, low) * adapter.record.spec.scale
    return (weight.float() + change).to(weight.dtype)


def export_merged(
    checkpoint: Path,
    base: Path,
    destination: Path,
    *,
    dtype: torch.dtype | None = None,
    card: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Export base and adapter as one Hugging Face model.

    Args:
        checkpoint: training checkpoint with an adapter alone.
        base: the model that it was trained on, in any form.
        destination: absent, empty, or an earlier export.
        dtype: type of the weights; None takes that in which the adapter was trained.
        card: sections of the model card, before those that lie beside the checkpoint.
        max_shard_bytes: upper bound of one safetensors file.
        progress: show a bar.

    Raises:
        UserError: the checkpoint is damaged, the base is another one, or the destination cannot be
            written.
    """
    adapter = open_adapter(checkpoint)
    opened = _open_base(base, adapter)
    changed = {o.hf + WEIGHT: o for o in adapted_matrices(adapter.bridge, adapter.record.spec)}
    if dtype is None:
        dtype = adapter.tensors.dtype(next(iter(changed.values())).megatron_name(A))
    shapes = adapter.bridge.hf_shapes()
    specs = [TensorSpec(name, shape, dtype) for name, shape in shapes.items()]

    def read(wanted: Set[str]) -> Iterator[tuple[str, Tensor]]:
        tensors = progress_bar(
            opened.tensors(wanted), total=len(specs), initial=len(specs) - len(wanted),
            unit="tensor", label="export", enabled=progress,
        )  # fmt: skip
        for name, tensor in tensors:
            weight = tensor.to(dtype)  # as training had it
            yield name, merged(weight, adapter, changed[name]) if name in changed else weight

    write_hf(
        destination,
        adapter.bridge.config,
        checkpoint / ASSETS,
        specs,
        read,
        key={
            "source": identity_of_files(checkpoint),
            "dtype": str(dtype),
            "adapter": asdict(adapter.record.spec),
        },
        card={**read_card(checkpoint), **(card or {})},
        max_shard_bytes=max_shard_bytes,
    )


def export_peft(checkpoint: Path, destination: Path, *, base: str | None = None) -> None:
    """Export an adapter alone, in PEFT's format.

    Args:
        checkpoint: training checkpoint with an adapter alone.
        destination: absent, empty, or an earlier export.
        base: name or path that PEFT is to load the base by; None takes what the run was given.

    Raises:
        UserError: the checkpoint is damaged, or the destination cannot be written.
    """
    adapter = open_adapter(checkpoint)
    record = adapter.record
    write_peft(
        destination,
        adapter.bridge,
        record.spec,
        adapter.tensors.tensor,
        base=base or record.base,
        base_sha256=record.base_sha256,
    )
