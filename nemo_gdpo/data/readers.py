"""Rows out of JSONL, Parquet and Hugging Face `datasets`; pairs out of rows.

Every mistake in the input is a `UserError` that names the file and the 1-based line or row.
Two kinds of mistakes are told apart. A file that cannot be read (not JSON, missing columns, wrong
types) always stops the run. A pair that reads well but cannot be learned from (an empty response,
identical responses) stops the run too, unless `on_bad_pair="drop"`, which drops and counts it: the
large public data sets contain a few of those.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_gdpo.config.hub import may_be_hub_name
from nemo_gdpo.data.checks import BadPairError, check_pair
from nemo_gdpo.data.formats import FORMATS, detect_format
from nemo_gdpo.data.odpo_json import read_odpo_json
from nemo_gdpo.data.types import RawPair, ReadStats, Row
from nemo_gdpo.errors import UserError

FORMAT_NAMES = ("auto", *sorted([*FORMATS, "odpo_json"]))


def read_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    require_scores: bool = False,
    on_bad_pair: str = "error",
    stats: ReadStats | None = None,
) -> Iterator[RawPair]:
    """Yield the pairs of a file, a directory or a hub data set, checked.

    Args:
        path: `.jsonl`/`.json`/`.ndjson`/`.parquet` file; a directory written by
            `Dataset.save_to_disk`; a data set directory or hub name for `load_dataset`.
        format: a name of `FORMAT_NAMES`; "auto" decides by the columns of the first row.
        split: which split of a Hugging Face data set; files have none.
        require_scores: every pair must have both scores; ties (equal in float32, the precision of
            the objective) are dropped and counted in `stats`.
        on_bad_pair: "error" or "drop".

    Raises:
        UserError: anything wrong with the input, with file and line. No pair left is one, too.
    """
    if format not in FORMAT_NAMES:
        raise UserError(f"data.format={format!r} is unknown; use one of {', '.join(FORMAT_NAMES)}")
    if on_bad_pair not in ("error", "drop"):
        raise UserError(f"data.on_bad_pair={on_bad_pair!r} is unknown; use error or drop")
    stats = ReadStats() if stats is None else stats
    seen: dict[str, str] = {}
    for item in _raw_pairs(path, format, split, on_bad_pair, stats):
        if item.id in seen:
            raise UserError(
                f"{item.where}: id {item.id!r} was already used at {seen[item.id]}; "
                "give every pair its own id, or leave the id column out"
            )
        seen[item.id] = item.where
        try:
            tie = check_pair(item, require_scores=require_scores)
        except BadPairError as error:
            _drop_or_raise(error, on_bad_pair, stats)
            continue
        if tie and require_scores:
            stats.ties_dropped += 1
            continue
        stats.pairs += 1
        yield item
    if stats.pairs == 0:
        dropped = stats.ties_dropped + sum(stats.bad_dropped.values())
        why = f"all {dropped} pairs were dropped" if dropped else "it holds no pair"
        raise UserError(f"{path}: {why}; give a file with at least one usable preference pair")


def _raw_pairs(
    path: str | Path, format: str, split: str, on_bad_pair: str, stats: ReadStats
) -> Iterator[RawPair]:
    if format == "odpo_json":
        yield from read_odpo_json(path, stats)
        return
    convert = None if format == "auto" else FORMATS[format]
    for row in read_rows(path, split=split):
        if convert is None:
            name = detect_format(row)
            if name == "odpo_json":
                yield from read_odpo_json(path, stats)
                return
            convert = FORMATS[name]
        try:
            yield convert(row)
        except BadPairError as error:
            _drop_or_raise(error, on_bad_pair, stats)


def _drop_or_raise(error: BadPairError, on_bad_pair: str, stats: ReadStats) -> None:
    if on_bad_pair == "error":
        raise UserError(
            f"{error}; fix or remove it, or set data.on_bad_pair=drop to drop and count such pairs"
        ) from None
    stats.bad_dropped[error.reason] = stats.bad_dropped.get(error.reason, 0) + 1


def read_rows(path: str | Path, *, split: str = "train") -> Iterator[Row]:
    """Yield the records of `path`, each with its place; columns that hold null are left out."""
    file = Path(path)
    if file.is_dir():
        yield from _dataset_rows(file, split)
    elif file.is_file():
        if file.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty; give a file with preference pairs")
        if file.suffix in (".jsonl", ".json", ".ndjson"):
            yield from _jsonl_rows(file)
        elif file.suffix == ".parquet":
            yield from _parquet_rows(file)
        else:
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


def _jsonl_rows(file: Path) -> Iterator[Row]:
    blank: int | None = None
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if not line.strip():
                blank = number if blank is None else blank
                continue
            if blank is not None:
                # Blank lines at the end are how editors end a file; in the middle, a row got lost.
                raise UserError(f"{file}, line {blank}: the line is blank; remove it")
            yield Row(_json_object(line, where), where, number)


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
            "each line must be one complete JSON object"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: JSON is nested too deeply; flatten this line") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: a JSON {type(value).__name__}, not an object; write one pair per line"
        )
    return _without_nulls(value)


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


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
                    yield Row(_without_nulls(row), f"{file}, row {number}", number)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        reason = str(error).splitlines()[0]
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
    for number, row in enumerate(found, start=1):
        yield Row(_without_nulls(dict(row)), f"{name}, row {number}", number)
