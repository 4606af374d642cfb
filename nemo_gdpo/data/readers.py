"""Rows out of JSONL, Parquet and Hugging Face `datasets`; pairs out of rows.

Every mistake in the input is a `UserError` that names the file and the 1-based line or row.
Two kinds of mistakes are told apart. A file that cannot be read (not JSON, missing columns, wrong
types) always stops the run. A pair that reads well but cannot be learned from (an empty response,
identical responses, half of a character) stops the run too, unless `on_bad_pair="drop"`, which
drops and counts it: the large public data sets contain a few of those. `Faults` does either, or
lists all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from nemo_gdpo.config.hub import may_be_hub_name
from nemo_gdpo.data.checks import check_pair, refuse_half_characters
from nemo_gdpo.data.faults import Faults
from nemo_gdpo.data.formats import FORMATS, Converter, detect_format, from_unpaired
from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.groups import from_group
from nemo_gdpo.data.odpo_json import read_odpo_json
from nemo_gdpo.data.places import UsedNames
from nemo_gdpo.data.types import RawPair, ReadStats, Row
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.jsonl import Take, read_objects, refuse, refuse_other_kinds
from nemo_gdpo.io.text import shown

UNPAIRED, GROUPS = "unpaired", "groups"
FORMAT_NAMES = ("auto", *sorted([*FORMATS, "odpo_json", UNPAIRED, GROUPS]))


def read_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    require_scores: bool = False,
    on_bad_pair: str = "error",
    stats: ReadStats | None = None,
    problems: list[str] | None = None,
    limit: int | None = None,
    columns: PairColumns = PairColumns(),  # noqa: B008 - it does not change
) -> Iterator[RawPair]:
    """Yield the pairs of a file, a directory or a hub data set, checked; or its unpaired rows.

    Args:
        path: `.jsonl`/`.json`/`.ndjson`/`.parquet` file; a directory written by
            `Dataset.save_to_disk`; a data set directory or hub name for `load_dataset`.
        format: a name of `FORMAT_NAMES`; "auto" decides by the columns of the first row.
        split: which split of a Hugging Face data set; files have none.
        require_scores: every pair must have both scores; ties (equal in float32, the precision of
            the objective) are dropped and counted in `stats`.
        on_bad_pair: "error" or "drop".
        stats: fills up while pairs are consumed.
        problems: what is wrong with rows is appended here instead of being raised.
        limit: read no more rows.
        columns: with a weight or a margin of each pair.

    Raises:
        UserError: anything wrong with the input, with file and line. No pair left is one, too.
    """
    if format not in FORMAT_NAMES:
        raise UserError(f"data.format={format!r} is unknown; use one of {', '.join(FORMAT_NAMES)}")
    if on_bad_pair not in ("error", "drop"):
        raise UserError(f"data.on_bad_pair={on_bad_pair!r} is unknown; use error or drop")
    stats = ReadStats() if stats is None else stats
    faults = Faults(on_bad_pair == "drop", stats.bad_dropped, problems)
    used = UsedNames()
    for item in _raw_pairs(path, format, split, faults, stats, limit, columns):
        try:
            before = used.add(item.id, item.where)
            if before is not None:
                raise UserError(
                    f"{item.where}: id {item.id!r} was already used at {before}; "
                    "give every pair its own id, or leave the id column out"
                )
            tie = check_pair(item, require_scores=require_scores)
        except UserError as error:
            faults.take(error)
            continue
        if tie and require_scores:
            stats.ties_dropped += 1
            continue
        stats.pairs += 1
        yield item
    if stats.pairs == 0 and not problems:
        dropped = stats.ties_dropped + sum(stats.bad_dropped.values())
        why = f"all {dropped} pairs were dropped" if dropped else "it holds no pair"
        reasons = shown(f"{count} {reason}" for reason, count in stats.bad_dropped.items())
        why += f" ({reasons})" if stats.bad_dropped else ""
        raise UserError(f"{path}: {why}; give a file with at least one usable preference pair")


def _raw_pairs(
    path: str | Path,
    format: str,
    split: str,
    faults: Faults,
    stats: ReadStats,
    limit: int | None,
    columns: PairColumns,
) -> Iterator[RawPair]:
    if format == "odpo_json":
        columns.refuse(format, path)
        yield from read_odpo_json(path, stats, faults.take)
        return
    if format == GROUPS:
        yield from read_groups(path, split, columns.group_size, faults, limit)
        return
    if format == UNPAIRED:
        convert: Converter | None = partial(from_unpaired, threshold=columns.threshold)
    else:
        convert = None if format == "auto" else FORMATS[format]
    for row in islice(read_rows(path, split=split, take=faults.take), limit):
        if convert is None:
            name = detect_format(row)
            if name == "odpo_json":
                columns.refuse(name, path)
                yield from read_odpo_json(path, stats, faults.take)
                return
            convert = FORMATS[name]
        try:
            bare, weight, margin = columns.take(row)
            yield replace(convert(bare), weight=weight, margin=margin)
        except UserError as error:
            faults.take(error)


def read_groups(
    path: str | Path, split: str, size: int | None, faults: Faults, limit: int | None
) -> Iterator[RawPair]:
    """Two answers at a time of rows that have `size` of them each; see `formats.from_group`."""
    for row in islice(read_rows(path, split=split, take=faults.take), limit):
        try:
            yield from from_group(row, size)
        except UserError as error:
            faults.take(error)


def read_rows(path: str | Path, *, split: str = "train", take: Take = refuse) -> Iterator[Row]:
    """Yield the records of `path`, each with its place; columns that hold null are apart.

    Args:
        path: see `read_pairs`.
        split: of a Hugging Face data set.
        take: is told what is wrong with a row, which is left out.

    Raises:
        UserError: the file cannot be read, or what `take` raises.
    """
    for row in _rows(path, split, take):
        try:
            refuse_half_characters(row.data, row.where)
        except UserError as error:
            take(error)
        else:
            yield row


def _rows(path: str | Path, split: str, take: Take) -> Iterator[Row]:
    file = Path(path)
    if file.is_dir():
        yield from _dataset_rows(file, split)
    elif file.is_file():
        if file.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty; give a file with preference pairs")
        if file.suffix in (".jsonl", ".json", ".ndjson"):
            for where, number, found in read_objects(file, take):
                yield _row(found, where, number)
        elif file.suffix == ".parquet":
            yield from _parquet_rows(file)
        else:
            refuse_other_kinds(file)
            raise UserError(
                f"{file}: unknown kind of file {file.suffix!r}; use .jsonl, .parquet or a data set "
                "directory"
            )
    elif may_be_hub_name(str(path)):
        yield from _hub_rows(str(path), split)
    else:
        raise UserError(
            f"{path}: no such file or directory; check data.train_path and data.validation_path"
        )


def _row(found: Mapping[str, Any], where: str, number: int) -> Row:
    given = {key: value for key, value in found.items() if value is not None}
    return Row(given, where, number, frozenset(found.keys() - given.keys()))


def _optional(name: str, what: str | Path) -> Any:
    """A package that only some kinds of input need."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{what}: reading it needs the package {name.split('.')[0]}; "
            "pip install 'nemo_gdpo[data]', or give a .jsonl file"
        ) from None


def _parquet_rows(file: Path) -> Iterator[Row]:
    pyarrow = _optional("pyarrow", file)
    parquet = _optional("pyarrow.parquet", file)

    try:
        with parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(row, f"{file}, row {number}", number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: not a readable Parquet file ({reason}); write it again") from None


def _dataset_rows(directory: Path, split: str) -> Iterator[Row]:
    datasets = _optional("datasets", directory)

    saved = (directory / "state.json").is_file() or (directory / "dataset_dict.json").is_file()
    try:
        if saved:
            found = datasets.load_from_disk(str(directory))
        else:
            found = datasets.load_dataset(str(directory))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{directory}: not a data set that `datasets` can load ({reason}); "
            "give a directory of JSONL or Parquet files, or one written by save_to_disk"
        ) from None
    yield from _rows_of(found, str(directory), split)


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    datasets = _optional("datasets", name)

    try:
        found = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: no such file here, and the Hugging Face hub did not give it ({reason}); "
            "check the path, or download the data set and give its directory"
        ) from None
    yield from _rows_of(found, name, split)


def _rows_of(found: Any, name: str, split: str) -> Iterator[Row]:
    if isinstance(found, dict):
        if split not in found:
            raise UserError(
                f"{name}: no split {split!r}, it has {', '.join(sorted(found))}; set data.split"
            )
        found = found[split]
    media = [key for key, feature in found.features.items() if _is_media(feature)]
    if media:
        raise UserError(
            f"{name}: the columns {shown(media)} hold images, sound or video, and nothing reads "
            "them; give a data set of text, or remove the columns"
        )
    for number, row in enumerate(found, start=1):
        yield _row(row, f"{name}, row {number}", number)


def _is_media(feature: Any) -> bool:
    """Whether a column's values would be decoded to something that is no text."""
    return any(word in repr(feature) for word in ("Image(", "Audio(", "Video("))
