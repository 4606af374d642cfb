"""The prepared form of a data set: token arrays in safetensors and a JSON manifest.

A directory with `pairs.safetensors`, `pairs.jsonl` (id and meta of each pair) and `manifest.json`,
which is written last: a directory without it is unfinished and refused. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy.typing as npt

from nemo_gdpo.data.dataset import PairArrays, PreferenceDataset
from nemo_gdpo.data.names import NameColumn, line_of, read_names
from nemo_gdpo.data.tokenize import TokenizeStats
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.staged import StagedDirectory, same_contents, stage
from nemo_gdpo.io.tensor_file import map_columns, write_columns

KIND = "nemo_gdpo prepared pairs"
VERSION = 1


def is_prepared(path: str | Path) -> bool:
    return (Path(path) / "manifest.json").is_file() and (Path(path) / "pairs.safetensors").is_file()


def prepared_date(path: str | Path) -> str | None:
    """The date that a prepared data set's template wrote; None without a data set, or a clock."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        manifest = json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))
        return manifest["settings"].get("date") if manifest["kind"] == KIND else None
    return None


def save_prepared(
    dataset: PreferenceDataset, directory: str | Path, *, made_from: str | None = None
) -> Path:
    """Write the directory beside its place and move it there, complete and on disk.

    What is there is kept when it is the same to the byte, and replaced otherwise.

    Args:
        dataset: to write.
        directory: of it.
        made_from: digest of all that the tokens depend on; a later start finds by it that there is
            nothing to do.

    Raises:
        UserError: something that is not a prepared data set is in the way.
        RunError: it cannot be written.
    """
    target = Path(directory)
    if (
        target.exists()
        and not is_prepared(target)
        and not (target.is_dir() and not any(target.iterdir()))
    ):
        raise UserError(
            f"{target}: exists and is not a prepared data set; choose another directory"
        )
    staged: StagedDirectory | None = None
    try:
        staged = stage(target)
        _write(dataset, staged.path, made_from)
        if not staged.publish(replace=False) and not same_contents(staged.path, target):
            staged.publish(replace=True)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"{target}: cannot be written ({reason}); free space or choose another place, then "
            "start again"
        ) from None
    finally:
        if staged is not None:  # nothing of it, once it is in its place
            staged.discard()
    return target


def _write(dataset: PreferenceDataset, directory: Path, made_from: str | None) -> None:
    arrays = dataset.arrays
    columns: dict[str, npt.NDArray[Any]] = {
        "tokens": arrays.tokens,
        "offsets": arrays.offsets,
        "complete": arrays.complete,
        "scores": arrays.scores,
        **arrays.optional,
    }
    with (directory / "pairs.safetensors").open("wb") as file:
        write_columns(file, columns)
    with (directory / "pairs.jsonl").open("wb") as file:
        file.writelines(line_of(*row) for row in zip(arrays.ids, arrays.metas, strict=True))
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "fingerprint": dataset.fingerprint,
        "pairs": len(dataset),
        "end_token_id": dataset.end_token_id,
        "pad_token_id": dataset.pad_token_id,
        "stats": dataset.stats.to_dict(),
        "settings": dataset.settings,
        "made_from": made_from,
    }
    (directory / "manifest.json").write_text(
        json.dumps(manifest, indent=2) + "\n", encoding="utf-8"
    )


def made_from(directory: Path) -> str | None:
    """What a whole prepared data set says that it was made from; None where it says nothing."""
    found = json.loads((directory / "manifest.json").read_text(encoding="utf-8")).get("made_from")
    return None if found is None else str(found)


def load_prepared(
    directory: str | Path,
    *,
    expected_settings: dict[str, Any] | None = None,
    again: str = "run `nemo-gdpo prepare` again",
    verified: str | None = None,
) -> PreferenceDataset:
    """Load and verify a prepared data set.

    Args:
        directory: of it.
        expected_settings: it must have been made with.
        again: what to do when it is damaged.
        verified: fingerprint of what another process has just looked through: of that, the
            manifest and the sizes are compared alone, and tokens are only mapped.

    Raises:
        UserError: not a prepared directory, another version, damaged, or made with other settings
            than `expected_settings` (every differing key is named).
    """
    path = Path(directory)
    if not is_prepared(path):
        raise UserError(f"{path}: not a prepared data set; make one with `nemo-gdpo prepare`")
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}/manifest.json: not valid JSON; {again}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise UserError(f"{path}/manifest.json: not the manifest of a prepared data set; {again}")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: version {manifest.get('version')}, this program reads {VERSION}; {again}"
        )
    if expected_settings is not None:
        _compare_settings(path, manifest["settings"], expected_settings)
    try:
        dataset = PreferenceDataset(
            _read_arrays(path),
            end_token_id=manifest["end_token_id"],
            pad_token_id=manifest["pad_token_id"],
            stats=TokenizeStats(**manifest["stats"]),
            settings=manifest["settings"],
            fingerprint=verified,
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); {again}") from None
    if dataset.fingerprint != manifest["fingerprint"]:
        raise UserError(f"{path}: its content does not match its fingerprint; {again}")
    return dataset


def _read_arrays(path: Path) -> PairArrays:
    columns = map_columns(path / "pairs.safetensors")
    names = read_names(path / "pairs.jsonl")
    shapes = {name: column.shape for name, column in columns.items()}
    count = len(names)
    optional = {
        "weights": (count,), "margins": (count,), "labels": (count, 2),
        "second_offsets": (count + 1,),
    }  # fmt: skip
    other = [name for name, shape in optional.items() if shapes.get(name, shape) != shape]
    if other or shapes["offsets"] != (3 * len(names) + 1,) or shapes["scores"] != (len(names), 2):
        raise ValueError("pairs.jsonl and pairs.safetensors differ in length")
    return PairArrays(ids=NameColumn(names, "id"), metas=NameColumn(names, "meta"), **columns)


def _compare_settings(path: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    differing = [
        key for key in sorted({*stored, *expected}) if stored.get(key) != expected.get(key)
    ]
    if differing:
        details = ", ".join(
            f"{key} {stored.get(key)!r} instead of {expected.get(key)!r}" for key in differing
        )
        raise UserError(
            f"{path}: prepared with other settings ({details}); run `nemo-gdpo prepare` again"
        )
