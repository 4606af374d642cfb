"""One hash for the weights of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from nemo_gdpo.conversion.formats.hf_source import weight_files
from nemo_gdpo.errors import UserError
from nemo_gdpo.progress import progress_bar

DIST = "dist"
_BLOCK = 1 << 22


def weight_paths(source: Path) -> list[Path]:
    """The weight files of a Hugging Face directory or of a Megatron checkpoint, sorted.

    Raises:
        UserError: no weights, or shards are missing.
    """
    if not (source / DIST).is_dir():
        return [source / name for name in weight_files(source)]
    found = sorted(path for path in (source / DIST).iterdir() if path.is_file())
    if not any(path.suffix == ".distcp" for path in found):
        raise UserError(f"{source / DIST} has no weights (*.distcp); restore the checkpoint")
    return found


def hash_files(files: Sequence[Path], *, progress: bool = False) -> str:
    """SHA-256 (hex) over names and contents of files, in their order; folders do not count.

    Args:
        files: exist.
        progress: show a bar.
    """
    whole = hashlib.sha256()
    total = sum(path.stat().st_size for path in files)
    with progress_bar(
        total=total, unit="B", unit_scale=True, label="hash", enabled=progress
    ) as bar:
        for path in files:
            own = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    own.update(block)
                    bar.update(len(block))
            whole.update(f"{path.name}\0{own.hexdigest()}\n".encode())
    return whole.hexdigest()


def weights_fingerprint(source: Path, *, progress: bool = False) -> str:
    """SHA-256 (hex) over names and contents of the weight files.

    Args:
        source: a Hugging Face directory, or a Megatron checkpoint with its `dist/`.
        progress: show a bar.

    Raises:
        UserError: no weights, or shards are missing.
    """
    return hash_files(weight_paths(source), progress=progress)
