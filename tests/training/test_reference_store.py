"""A reference cache is used complete and by its own run, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import file_sha256
from nemo_gdpo.io.staged import StagedDirectory
from nemo_gdpo.training.reference_store import (
    ReferenceKey,
    ReferenceShardWriter,
    finish_cache,
    load_cache,
    start_cache,
)

KEY = ReferenceKey(
    weights="w",
    data="d",
    template="t",
    truncation="keep_end prompt 8 total 16",
    precision="fp32",
    eos_temperature=1.0,
    columns=("label", "eos"),
)
LENGTHS = [3, 1, 2, 4]
"""Pair 0 has 3 chosen and 1 rejected tokens, pair 1 has 2 and 4."""


def row(number: int) -> torch.Tensor:
    """[T, 2]: values that say which row and position they are of."""
    positions = torch.arange(LENGTHS[number], dtype=torch.float32)
    return torch.stack([-number - positions / 10, -100.0 - number - positions / 10], dim=1)


def write(
    directory: Path, rows: list[int], *, values: dict[int, torch.Tensor] | None = None
) -> StagedDirectory:
    staged = start_cache(directory)
    writer = ReferenceShardWriter(staged.path, "0000", rows_per_shard=2)
    for number in rows:
        writer.add(number, (values or {}).get(number, row(number)))
    writer.flush()
    return staged


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "reference" / "train"
    finish_cache(write(directory, [2, 3, 0, 1]), KEY, LENGTHS)
    return directory


def test_values_come_back_chosen_rows_first(cache: Path) -> None:
    store = load_cache(cache, KEY, LENGTHS)
    assert torch.equal(store.columns([1, 0]), torch.cat([row(2), row(0), row(3), row(1)]))
    assert len(list(cache.glob("shard-*.safetensors"))) == 2
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_two_writers_make_one_cache(tmp_path: Path) -> None:
    directory = tmp_path / "train"
    staged = start_cache(directory)
    for writer_rank, rows in ((0, [0, 1]), (1, [2, 3])):
        writer = ReferenceShardWriter(staged.path, f"{writer_rank:04d}")
        for number in rows:
            writer.add(number, row(number))
        writer.flush()
    finish_cache(staged, KEY, LENGTHS)
    assert torch.equal(
        load_cache(directory, KEY, LENGTHS).columns([0]), torch.cat([row(0), row(1)])
    )


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("weights", "x"),
        ("data", "x"),
        ("template", "x"),
        ("truncation", "keep_start prompt 8 total 16"),
        ("precision", "bf16"),
        ("eos_temperature", 0.1),
        ("columns", ("label",)),
    ],
)
def test_a_foreign_cache_is_refused_by_the_field_that_differs(
    cache: Path, field: str, other: object
) -> None:
    with pytest.raises(UserError, match=f"another run: it differs in {field};") as caught:
        load_cache(cache, replace(KEY, **{field: other}), LENGTHS)
    assert "\n" not in str(caught.value)
    assert "reference_cache_dir" in str(caught.value)


def test_interrupted_cache_is_restarted(tmp_path: Path) -> None:
    directory = tmp_path / "train"
    write(directory, [0, 1, 2]).leave()
    assert not directory.exists()
    finish_cache(write(directory, [3, 2, 1, 0]), KEY, LENGTHS)
    load_cache(directory, KEY, LENGTHS)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_the_second_of_two_runs_leaves_the_cache_of_the_first(tmp_path: Path) -> None:
    directory = tmp_path / "train"
    late = write(directory, [3, 2, 1, 0], values={0: row(0) - 1.0})
    finish_cache(write(directory, [0, 1, 2, 3]), KEY, LENGTHS)
    finish_cache(late, KEY, LENGTHS)
    assert torch.equal(load_cache(directory, KEY, LENGTHS).columns([0])[:3], row(0))
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_cache_without_manifest_is_incomplete(cache: Path) -> None:
    (cache / "manifest.json").unlink()
    with pytest.raises(UserError, match="incomplete"):
        load_cache(cache, KEY, LENGTHS)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"key": {}, "shards": []}'])
def test_a_damaged_manifest_is_refused(cache: Path, content: str) -> None:
    (cache / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        load_cache(cache, KEY, LENGTHS)


def test_a_missing_shard_is_named(cache: Path) -> None:
    shard = sorted(cache.glob("shard-*"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        load_cache(cache, KEY, LENGTHS)


def test_a_flipped_bit_is_found(cache: Path) -> None:
    shard = sorted(cache.glob("shard-*"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        load_cache(cache, KEY, LENGTHS)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([0, 1, 3], r"1 rows are missing or doubled, the first \[2\]"), ([], "4 rows are missing")],
)
def test_a_missing_row_is_not_finished(tmp_path: Path, rows: list[int], reason: str) -> None:
    directory = tmp_path / "train"
    staged = write(directory, rows)
    with pytest.raises(RuntimeError, match=reason):
        finish_cache(staged, KEY, LENGTHS)
    assert not directory.exists()


def test_a_doubled_row_is_not_finished(tmp_path: Path) -> None:
    staged = write(tmp_path / "train", [0, 1, 2, 3, 1])
    with pytest.raises(RuntimeError, match=r"doubled, the first \[1\]"):
        finish_cache(staged, KEY, LENGTHS)


def test_a_row_of_another_length_is_not_finished(tmp_path: Path) -> None:
    staged = write(tmp_path / "train", [0, 1, 2, 3], values={2: torch.zeros(3, 2)})
    with pytest.raises(RuntimeError, match="row 2 has 3 values for 2 tokens"):
        finish_cache(staged, KEY, LENGTHS)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_not_finished(tmp_path: Path, bad: float) -> None:
    values = row(2)
    values[1, 1] = bad
    staged = write(tmp_path / "train", [0, 1, 2, 3], values={2: values})
    with pytest.raises(RuntimeError, match="not finite"):
        finish_cache(staged, KEY, LENGTHS)
    assert not (tmp_path / "train").exists()


def test_a_shard_with_honest_hash_but_other_rows_is_refused(cache: Path) -> None:
    """Someone rewrote a shard and its hash: the rows are still counted."""
    shard = sorted(cache.glob("shard-*"))[0]
    tensors = load_file(shard)
    tensors["rows"] = torch.tensor([2, 2])
    tensors["lengths"] = torch.tensor([2, 2])
    tensors["values"] = torch.zeros(4, 2)
    save_file(tensors, shard)
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["shards"][shard.name] = file_sha256(shard)
    (cache / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="missing or doubled"):
        load_cache(cache, KEY, LENGTHS)
