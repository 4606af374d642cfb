"""Any model that a run may start from, as a Megatron checkpoint; converted once, then cached."""

from __future__ import annotations

import tarfile
from pathlib import Path

from nemo_gdpo.conversion.atomic import staged_directory
from nemo_gdpo.conversion.cache import assets_digest, obtain, source_fingerprint
from nemo_gdpo.conversion.convert import VOCAB_DIVISIBLE_BY, convert_hf_to_megatron
from nemo_gdpo.conversion.fingerprint import weight_paths
from nemo_gdpo.conversion.formats.megatron_io import (
    MODEL_CONFIG,
    is_megatron_checkpoint,
    read_checkpoint_model,
)
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.conversion.nemo1.nemo_import import convert_nemo_to_megatron
from nemo_gdpo.errors import UserError

SUFFIX = ".nemo"


def is_own_archive(archive: Path) -> bool:
    """Whether an archive holds a Megatron checkpoint of this program, rather than NeMo's own.

    Raises:
        UserError: it is no readable archive.
    """
    try:
        with tarfile.open(archive) as tar:
            return any(member.name.removeprefix("./") == MODEL_CONFIG for member in tar)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive}: is no readable .nemo archive ({error})") from None


def _from_archive(archive: Path, key: dict[str, object], directory: Path) -> None:
    if not is_own_archive(archive):
        convert_nemo_to_megatron(archive, directory, progress=True)
        return
    with staged_directory(directory, kind="megatron", key=key) as staging:
        extract(archive, staging.path)


def as_megatron(path: Path) -> Path:
    """The Megatron checkpoint of a Hugging Face directory, a `.nemo`, or itself.

    Raises:
        UserError: there is none of them at `path`, it is not convertible, or the cache cannot be
            written.
    """
    if is_megatron_checkpoint(path):
        return path
    if path.is_file() and path.suffix == SUFFIX:
        key: dict[str, object] = {"archive": source_fingerprint(path, [path], progress=True)}
        found, reused = obtain(path, key, lambda target: _from_archive(path, key, target))
    elif (path / "config.json").is_file():
        key = {
            "weights": source_fingerprint(path, weight_paths(path), progress=True),
            "assets": assets_digest(path),
            "vocab_divisible_by": VOCAB_DIVISIBLE_BY,
        }
        found, reused = obtain(
            path, key, lambda target: convert_hf_to_megatron(path, target, progress=True)
        )
    else:
        raise UserError(
            f"{path}: is neither a Hugging Face directory (no config.json), nor a Megatron "
            f"checkpoint (no {MODEL_CONFIG} with dist/), nor a {SUFFIX} file"
        )
    print(f"converted model: {'reused' if reused else 'made'} {found}", flush=True)
    return found


def fingerprint_of(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights: what a conversion started from, or, of a training
    checkpoint, its own.
    """
    source = read_checkpoint_model(checkpoint).source_sha256
    trained = (checkpoint / "trainer_state.json").is_file()
    if source is not None and not trained:
        return source
    return source_fingerprint(checkpoint, weight_paths(checkpoint), progress=True)
