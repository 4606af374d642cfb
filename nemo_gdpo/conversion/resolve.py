"""Any model that a run may start from, as a Megatron checkpoint; converted once, then cached."""

from __future__ import annotations

import tarfile
from pathlib import Path

from nemo_gdpo.config.model_files import (
    MODEL_CONFIG,
    is_megatron_checkpoint,
    megatron_checkpoint_root,
)
from nemo_gdpo.conversion.atomic import staged_directory
from nemo_gdpo.conversion.cache import (
    ENVIRONMENT,
    assets_digest,
    cache_root,
    get_or_convert,
    source_fingerprint,
)
from nemo_gdpo.conversion.convert import VOCAB_DIVISIBLE_BY, convert_hf_to_megatron
from nemo_gdpo.conversion.fingerprint import weight_paths
from nemo_gdpo.conversion.formats.assets import CONFIG
from nemo_gdpo.conversion.formats.megatron_io import read_checkpoint_model
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.conversion.nemo1.nemo_import import convert_nemo_to_megatron
from nemo_gdpo.conversion.own_archive import SUFFIX
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.remedies import remedy_of, unwritable


def is_own_archive(archive: Path) -> bool:
    """Whether an archive holds a Megatron checkpoint of this program, rather than NeMo's own.

    Raises:
        UserError: it is not a readable archive.
    """
    try:
        with tarfile.open(archive) as tar:
            return any(member.name.removeprefix("./") == MODEL_CONFIG for member in tar)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive}: is not a readable .nemo archive ({error})") from None


def _from_archive(archive: Path, key: dict[str, object], directory: Path) -> None:
    if not is_own_archive(archive):
        convert_nemo_to_megatron(archive, directory, progress=True)
        return
    with staged_directory(directory, kind="megatron", key=key) as staging:
        extract(archive, staging.path)


def is_hf_directory(path: Path) -> bool:
    """Whether a run would take a path for a Hugging Face directory."""
    return (path / CONFIG).is_file() and not is_megatron_checkpoint(path)


def resolve_checkpoint(path: Path) -> Path:
    """The Megatron checkpoint of a Hugging Face directory, a `.nemo`, or itself.

    Raises:
        UserError: none of them is at `path`, it is not convertible, or the cache cannot be
            written.
    """
    if is_megatron_checkpoint(path):
        root = megatron_checkpoint_root(path)
        if root is None:
            raise UserError(
                f"{path} is a Megatron checkpoint without its {MODEL_CONFIG}; convert the model "
                "again with `nemo-gdpo convert`"
            )
        return root
    if path.is_file() and path.suffix == SUFFIX:
        key: dict[str, object] = {"archive": _fingerprint(path, [path])}
        found, reused = get_or_convert(path, key, lambda target: _from_archive(path, key, target))
    elif is_hf_directory(path):
        key = {
            "weights": fingerprint_of(path),
            "assets": assets_digest(path),
            "vocab_divisible_by": VOCAB_DIVISIBLE_BY,
        }
        found, reused = get_or_convert(
            path, key, lambda target: convert_hf_to_megatron(path, target, progress=True)
        )
    else:
        raise UserError(
            f"{path}: is neither a Hugging Face directory (no {CONFIG}), nor a Megatron "
            f"checkpoint (no {MODEL_CONFIG} with dist/), nor a {SUFFIX} file"
        )
    print(f"converted model: {'reused' if reused else 'made'} {found}", flush=True)
    return found


def _fingerprint(source: Path, files: list[Path]) -> str:
    try:
        return source_fingerprint(source, files, progress=True)
    except OSError as error:
        raise unwritable(
            error,
            f"{source}: its fingerprint cannot be computed, or not be kept in {cache_root()} "
            f"({error}); {remedy_of(error)}, or set {ENVIRONMENT} to a directory that can be "
            "written",
        ) from None


def fingerprint_of(source: Path) -> str:
    """SHA-256 of the weights of a Megatron checkpoint or a Hugging Face directory.

    A conversion has that of the directory it came from; a training checkpoint has its own.

    Raises:
        UserError: the weights cannot be read, or what is known of them not be kept.
    """
    if is_megatron_checkpoint(source):
        origin = read_checkpoint_model(source).source_sha256
        if origin is not None and not (source / "trainer_state.json").is_file():
            return origin
    return _fingerprint(source, weight_paths(source))
