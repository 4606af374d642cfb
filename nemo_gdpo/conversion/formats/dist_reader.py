"""Reads complete tensors from a Megatron distributed checkpoint, without building the model."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.serialization import get_unsafe_globals_in_checkpoint

from nemo_gdpo.conversion.formats.dist_metadata import read_metadata
from nemo_gdpo.errors import UserError

OPTIMIZER_PREFIX = "optimizer."
ALLOWED_OBJECTS = frozenset({"_io.BytesIO"})
"""Classes, beyond torch's own safe ones, that Megatron keeps in entries that are not tensors."""
LEGACY_COMMON = "common.pt"
"""Megatron reads it, where it exists, as a stream of Python objects."""


def check_dist_checkpoint(dist_directory: Path) -> None:
    """Refuse a checkpoint that could run code, before anything else opens it.

    Call it before `megatron.core.dist_checkpointing.load`, which reads `.metadata`, and through
    torch's load planner everything that is not a tensor, as Python objects of any class.

    Raises:
        UserError: it could, or it is not a checkpoint, or one of megatron-core older than 0.19.
    """
    metadata = read_metadata(dist_directory)
    for index, info in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
            continue  # read with weights_only
        reason = _unsafe_object(dist_directory, info)
        if reason is not None:
            raise UserError(
                f"{dist_directory / info.relative_path}: {index.fqn} is refused, {reason}; do not "
                "use this checkpoint"
            )
    if (dist_directory / LEGACY_COMMON).exists():
        raise UserError(
            f"{dist_directory}: {LEGACY_COMMON} is refused: megatron-core 0.19 does not write it, "
            "and it can hold any Python object; save the checkpoint again with megatron-core 0.19"
        )


def _slice(dist_directory: Path, info: _StorageInfo) -> io.BytesIO:
    with (dist_directory / info.relative_path).open("rb") as file:
        file.seek(info.offset)
        return io.BytesIO(file.read(info.length))


def _unsafe_object(dist_directory: Path, info: _StorageInfo) -> str | None:
    """Why a stored object may not be loaded, or None. Looks at names; loads nothing."""
    try:
        named = get_unsafe_globals_in_checkpoint(_slice(dist_directory, info))
    except Exception as error:  # noqa: BLE001 - a damaged or foreign stream raises almost anything
        return f"it cannot be checked ({(str(error).splitlines() or [type(error).__name__])[0]})"
    foreign = sorted(set(named) - ALLOWED_OBJECTS)
    return f"it names {', '.join(foreign)}, which could run code" if foreign else None


class DistTensorSource:
    """A `TensorSource` over the model's tensors of a distributed checkpoint, each whole.

    The optimizer's tensors (`optimizer.…`) and what is not a tensor are left out.
    """

    def __init__(self, dist_directory: Path, *, others_too: bool = True) -> None:
        """Read the list of tensors.

        Args:
            dist_directory: holds `.metadata`.
            others_too: check what is not a tensor as well, for programs that will load it. Nothing
                here does.

        Raises:
            UserError: no checkpoint, a damaged one, or one that could run code.
        """
        if others_too:
            check_dist_checkpoint(dist_directory)
        metadata = read_metadata(dist_directory)
        self._directory = dist_directory
        self._storage: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self._entries = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith(OPTIMIZER_PREFIX)
        }

    @property
    def where(self) -> str:
        """The directory."""
        return str(self._directory)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return {name: tuple(entry.size) for name, entry in self._entries.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The type that a tensor is stored in."""
        return self._entries[name].properties.dtype

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, put together from its parts.

        Raises:
            UserError: a part is missing or damaged; its file is named.
        """
        entry = self._entries[name]
        if len(entry.chunks) == 1 and entry.chunks[0].sizes == entry.size:
            return self._part(name, entry, entry.chunks[0].offsets, entry.size)
        return self._assembled(name, entry, 0, entry.size[0])

    def row(self, name: str, index: int) -> Tensor:
        """Read one index of the first dimension; only the parts that it touches are read.

        Raises:
            UserError: a part is missing or damaged; its file is named.
        """
        return self._assembled(name, self._entries[name], index, index + 1)[0]

    def _assembled(self, name: str, entry: TensorStorageMetadata, first: int, end: int) -> Tensor:
        """Indices `first` to `end` (exclusive) of the first dimension, from all their parts."""
        whole = torch.empty((end - first, *entry.size[1:]), dtype=entry.properties.dtype)
        filled = 0
        for chunk in entry.chunks:
            for dim, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                if start < 0 or start + length > entry.size[dim]:
                    raise self._damaged(name, f"a part reaches beyond {list(entry.size)}")
            low, high = max(first, chunk.offsets[0]), min(end, chunk.offsets[0] + chunk.sizes[0])
            if low >= high:
                continue
            view = whole.narrow(0, low - first, high - low)
            for dim in range(1, len(chunk.sizes)):
                view = view.narrow(dim, chunk.offsets[dim], chunk.sizes[dim])
            part = self._part(name, entry, chunk.offsets, chunk.sizes)
            view.copy_(part.narrow(0, low - chunk.offsets[0], high - low))
            filled += view.numel()
        if filled != whole.numel():
            raise self._damaged(name, f"its parts hold {filled} of {whole.numel()} values")
        return whole

    def _damaged(self, name: str, reason: object) -> UserError:
        return UserError(f"{self._directory}: {name} is damaged ({reason}); restore the checkpoint")

    def _part(
        self, name: str, entry: TensorStorageMetadata, offsets: torch.Size, sizes: torch.Size
    ) -> Tensor:
        info = self._storage.get(MetadataIndex(name, offsets))
        if info is None:
            raise self._damaged(name, f"the part at {list(offsets)} is in no file")
        if info.transform_descriptors:
            raise self._damaged(name, "it is stored in a form that is not known")
        try:
            stored = _slice(self._directory, info)
            tensor = torch.load(stored, map_location="cpu", weights_only=True)
        except OSError as error:
            raise self._damaged(name, f"{info.relative_path}: {error.strerror}") from None
        except Exception as error:  # noqa: BLE001 - a damaged stream raises almost anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise self._damaged(name, f"{info.relative_path}: {reason}") from None
        if not isinstance(tensor, Tensor) or tensor.dtype != entry.properties.dtype:
            raise self._damaged(name, f"{info.relative_path} holds something else")
        if tensor.shape != sizes:
            raise self._damaged(name, f"{info.relative_path} holds {list(tensor.shape)}")
        return tensor
