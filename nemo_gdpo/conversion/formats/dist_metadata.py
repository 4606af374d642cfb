"""Reads the `.metadata` of a distributed checkpoint without trusting it.

torch stores it as a Python object stream, which can name any function and have it called. Here only
the classes that such a file needs can be named; everything else is refused before it is looked up.
"""

from __future__ import annotations

import pickle
from enum import EnumMeta
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from nemo_gdpo.errors import UserError

METADATA = ".metadata"
_CHECKPOINT = "torch.distributed.checkpoint."
_DTYPES = (
    "bfloat16", "bool", "complex128", "complex64", "float16", "float32", "float64", "float8_e4m3fn",
    "float8_e5m2", "int16", "int32", "int64", "int8", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
ALLOWED = frozenset(
    {
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        *(("torch", name) for name in _DTYPES),
        *(
            (_CHECKPOINT + "metadata", name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        *(
            (_CHECKPOINT + "planner", name)
            for name in (
                "BytesIOWriteData",
                "SavePlan",
                "TensorWriteData",
                "WriteItem",
                "WriteItemType",
            )
        ),
        (_CHECKPOINT + "filesystem", "_StorageInfo"),
        (_CHECKPOINT + "filesystem", "_StoragePrefix"),
    }
)
"""(module, name) of every class that a `.metadata` file may name. Paths like `a.b` never match."""


class _RefusedError(Exception):
    """The file names something outside of `ALLOWED`."""


def _enum_member(kind: object, name: object) -> object:
    """Stand in for `getattr`, with which some Pythons (3.11.2) store the member of an enum.

    Raises:
        _RefusedError: it is to get anything else.
    """
    if isinstance(kind, EnumMeta) and isinstance(name, str) and name in kind.__members__:
        return kind.__members__[name]
    raise _RefusedError("builtins.getattr")


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Look up what the file names, if it may name it."""
        if (module_name, global_name) == ("builtins", "getattr"):
            return _enum_member
        if (module_name, global_name) not in ALLOWED:
            raise _RefusedError(f"{module_name}.{global_name}")
        return super().find_class(module_name, global_name)

    def persistent_load(self, pid: Any) -> Any:
        """Such files have no persistent ids."""
        raise _RefusedError("a persistent id")


def _check_entries(path: Path, metadata: Any) -> Metadata:
    if not isinstance(metadata, Metadata):
        raise TypeError("it holds no checkpoint metadata")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(name, str):
            raise TypeError(f"a key is not text: {name!r}")
        if isinstance(entry, TensorStorageMetadata):
            if not all(isinstance(chunk, ChunkStorageMetadata) for chunk in entry.chunks):
                raise TypeError(f"{name} has parts of an unknown kind")
        elif not isinstance(entry, BytesStorageMetadata):
            raise TypeError(f"{name} is of an unknown kind")
    for index, info in metadata.storage_data.items():
        if not isinstance(index, MetadataIndex) or not isinstance(info, _StorageInfo):
            raise TypeError("a place in a file is of an unknown kind")
        # A relative path that climbs out would read, and later overwrite, other files.
        if Path(info.relative_path).name != info.relative_path:
            raise UserError(
                f"{path}: refused, it points to a file outside of the checkpoint "
                f"({info.relative_path}); do not use this checkpoint"
            )
    return metadata


def read_metadata(dist_directory: Path) -> Metadata:
    """Read what a distributed checkpoint holds and where. Runs nothing that the file asks for.

    Raises:
        UserError: a missing or damaged file, or one that names anything but the classes of a
            checkpoint's metadata: such a file could run code, and the checkpoint must not be
            loaded.
    """
    path = dist_directory / METADATA
    try:
        with path.open("rb") as file:
            loaded = _RestrictedUnpickler(file).load()
        return _check_entries(path, loaded)
    except FileNotFoundError:
        raise UserError(
            f"{dist_directory} is not a distributed checkpoint (no {METADATA}); give the directory "
            "that a conversion or a training run wrote"
        ) from None
    except _RefusedError as error:
        raise UserError(
            f"{path}: refused, it names {error}, which no checkpoint needs and which could run "
            "code; do not use this checkpoint"
        ) from None
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged stream raises almost anything
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore the checkpoint"
        ) from None
