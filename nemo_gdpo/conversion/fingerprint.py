"""One hash for the weights of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nemo_gdpo.conversion.hf_source import weight_files
from nemo_gdpo.errors import UserError
from nemo_gdpo.progress import progress_bar

DIST = "dist"
_BLOCK = 1 << 22


def _files(source: Path) -> list[Path]:
    if not (source / DIST).is_dir():
        return [source / name for name in weight_files(source)]
    found = sorted(path for path in (source / DIST).iterdir() if path.is_file())
    if not any(path.suffix == ".distcp" for path in found):
        raise UserError(f"{source / DIST} has no weights (*.distcp); restore the checkpoint")
    return found


def weights_fingerprint(source: Path, *, progress: bool = False) -> str:
    """SHA-256 (hex) over names and contents of the weight files.

    Args:
        source: a Hugging Face directory, or a Megatron checkpoint with its `dist/`.
        progress: show a bar.

    Raises:
        UserError: there are no weights, or shards are missing.
    """
    files = _files(source)
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
