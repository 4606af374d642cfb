"""A reference cache is used complete and by its own run, or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import file_sha256
from nemo_gdpo.io.locks import BusyError
from nemo_gdpo.io.staged import StagedDirectory
from nemo_gdpo.training.reference_key import Cut, ReferenceKey
from nemo_gdpo.training.reference_shards import (
    PATTERN,
    ShardError,
    ShardWriter,
    content_of,
    finished_batches,
    verify_shard,
)
from nemo_gdpo.training.reference_store import (
    finish_cache,
    load_cache,
    open_store,
    start_cache,
    verify_share,
)

KEY = ReferenceKey(
    weights="w",
    architecture={"hidden_size": 8, "rotary_base": 10000.0},
    data="d",
    template="t",
    truncation="keep_end prompt 8 total 16",
    precision="fp32",
    device="cpu",
    layers="local",
    attention_backend="auto",
    libraries={"torch": "2.13"},
    scorer=1,
    eos_temperature=1.0,
    columns=("label", "eos"),
)
CUT = Cut(
    global_batch_size=1,
    micro_batch_size=1,
    pack_tokens=None,
    prefix_sharing=False,
    packed_for=None,
    tensor=1,
    pipeline=1,
    context=1,
    sequence_parallel=False,
    vocab_divisible_by=128,
    logprob_chunk_tokens=1024,
)
LENGTHS = [3, 1, 2, 4]
"""Pair 0 has 3 chosen and 1 rejected tokens, pair 1 has 2 and 4."""


def row(number: int) -> torch.Tensor:
    """[T, 2]: values that say which row and position they are of."""
    positions = torch.arange(LENGTHS[number], dtype=torch.float32)
    return torch.stack([-number - positions / 10, -100.0 - number - positions / 10], dim=1)


def write(
    directory: Path,
    rows: list[int],
    *,
    values: dict[int, torch.Tensor] | None = None,
    key: ReferenceKey = KEY,
    cut: Cut = CUT,
) -> StagedDirectory:
    """Rows in shards of two each, as one rank writes them."""
    staged = start_cache(directory, key, cut)
    writer = ShardWriter(staged.path, key.digest(), columns=2)
    for place, number in enumerate(rows):
        if place % 2 == 0:
            writer.flush()
            writer.begin(place // 2)
        writer.add(number, (values or {}).get(number, row(number)))
    writer.flush()
    return staged


def finish(staged: StagedDirectory, key: ReferenceKey = KEY) -> None:
    shards = [verify_shard(p, key.digest(), LENGTHS) for p in staged.path.glob(PATTERN)]
    finish_cache(staged, key, LENGTHS, shards)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "reference" / "train"
    finish(write(directory, [2, 3, 0, 1]))
    return directory


def test_values_come_back_chosen_rows_first(cache: Path) -> None:
    store = load_cache(cache, KEY, LENGTHS)
    assert torch.equal(store.columns([1, 0]), torch.cat([row(2), row(0), row(3), row(1)]))
    assert len(list(cache.glob("shard-*.safetensors"))) == 2
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_two_writers_make_one_cache(tmp_path: Path) -> None:
    directory = tmp_path / "train"
    staged = start_cache(directory, KEY, CUT)
    for part, rows in ((0, [0, 1]), (1, [2, 3])):
        writer = ShardWriter(staged.path, KEY.digest(), columns=2, part=part, parts=2)
        writer.begin(0)
        for number in rows:
            writer.add(number, row(number))
        writer.flush()
    finish(staged)
    assert torch.equal(
        load_cache(directory, KEY, LENGTHS).columns([0]), torch.cat([row(0), row(1)])
    )


def test_a_rank_without_rows_takes_part(tmp_path: Path) -> None:
    """The last global batch may have only sentinels for a rank; the batch is complete with it."""
    staged = write(tmp_path / "train", [0, 1, 2, 3])
    idle = ShardWriter(staged.path, KEY.digest(), columns=2)
    idle.begin(2)
    idle.flush()
    done, unusable = finished_batches(path.name for path in staged.path.glob(PATTERN))
    assert sorted(done) == [0, 1, 2]
    assert unusable == []
    finish(staged)
    store = load_cache(tmp_path / "train", KEY, LENGTHS)
    assert torch.equal(store.columns([1]), torch.cat([row(2), row(3)]))


def test_each_rank_verifies_a_share(cache: Path) -> None:
    parts = [verify_share(cache, KEY, LENGTHS, (rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [1, 1, 0]
    store = open_store(cache, LENGTHS, [shard for part in parts for shard in part])
    assert torch.equal(store.columns([0]), torch.cat([row(0), row(1)]))
    with pytest.raises(UserError, match="2 rows are missing"):
        open_store(cache, LENGTHS, parts[0])


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("weights", "x"),
        ("data", "x"),
        ("template", "x"),
        ("truncation", "keep_start prompt 8 total 16"),
        ("precision", "bf16"),
        ("device", "cuda"),
        ("layers", "transformer_engine"),
        ("attention_backend", "flash"),
        ("scorer", 2),
        ("eos_temperature", 0.1),
        ("columns", ("label",)),
    ],
)
def test_a_foreign_cache_is_refused_by_the_field_that_differs(
    cache: Path, field: str, other: object
) -> None:
    with pytest.raises(UserError, match=f"another run: it differs in {field};") as caught:
        load_cache(cache, replace(KEY, **{field: other}), LENGTHS)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert "reference_cache_dir" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "other", "name"),
    [
        ("architecture", {"hidden_size": 8, "rotary_base": 5e5}, "architecture.rotary_base"),
        ("architecture", {"rotary_base": 10000.0}, "architecture.hidden_size"),
        ("libraries", {"torch": "2.14"}, "libraries.torch"),
    ],
)
def test_what_differs_inside_a_field_is_named(
    cache: Path, field: str, other: object, name: str
) -> None:
    with pytest.raises(UserError, match=f"it differs in {name};"):
        load_cache(cache, replace(KEY, **{field: other}), LENGTHS)  # type: ignore[arg-type]


def test_interrupted_cache_is_continued(tmp_path: Path) -> None:
    """What is whole is there again; what is half written is not."""
    directory = tmp_path / "train"
    left = write(directory, [0, 1])
    before = {path.name: path.read_bytes() for path in left.path.glob(PATTERN)}
    left.leave()
    assert not directory.exists()
    staged = start_cache(directory, KEY, CUT)
    assert {path.name: path.read_bytes() for path in staged.path.glob(PATTERN)} == before
    writer = ShardWriter(staged.path, KEY.digest(), columns=2)
    writer.begin(1)
    writer.add(2, row(2))
    writer.add(3, row(3))
    writer.flush()
    finish(staged)
    load_cache(directory, KEY, LENGTHS)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize(
    ("key", "cut", "named"),
    [
        (replace(KEY, eos_temperature=0.5), CUT, "eos_temperature"),
        (KEY, replace(CUT, micro_batch_size=2), "micro_batch_size"),
    ],
)
def test_unfinished_work_of_another_key_or_cut_is_dropped_and_named(
    tmp_path: Path, key: ReferenceKey, cut: Cut, named: str
) -> None:
    directory = tmp_path / "train"
    write(directory, [0, 1, 2, 3]).leave()
    said: list[str] = []
    staged = start_cache(directory, key, cut, say=said.append)
    assert list(staged.path.glob(PATTERN)) == []
    (line,) = said
    assert f"differs in {named} is dropped" in line


def test_two_runs_do_not_write_into_one_directory(tmp_path: Path) -> None:
    staged = write(tmp_path / "train", [0, 1])
    for other in (KEY, replace(KEY, eos_temperature=0.5)):
        with pytest.raises(BusyError):
            start_cache(tmp_path / "train", other, CUT)
    assert len(list(staged.path.glob(PATTERN))) == 1


def test_a_shard_of_another_key_is_not_taken(tmp_path: Path) -> None:
    """Whoever put it there: the key stands in the shard."""
    one = write(tmp_path / "one", [0, 1, 2, 3])
    other = replace(KEY, eos_temperature=0.5)
    two = write(tmp_path / "two", [0, 1, 2, 3], key=other)
    for path in two.path.glob(PATTERN):
        shutil.copy(path, one.path)
        with pytest.raises(ShardError, match="is of another key"):
            verify_shard(one.path / path.name, KEY.digest(), LENGTHS)


def test_a_flipped_bit_of_an_unfinished_cache_is_found(tmp_path: Path) -> None:
    """There is no manifest yet, and the number that it makes is finite."""
    staged = write(tmp_path / "train", [0, 1])
    (path,) = staged.path.glob(PATTERN)
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match="is damaged"):
        verify_shard(path, KEY.digest(), LENGTHS)


def test_the_second_of_two_runs_leaves_the_cache_of_the_first(tmp_path: Path) -> None:
    directory = tmp_path / "train"
    late = write(directory, [3, 2, 1, 0], values={0: row(0) - 1.0})
    finish(write(tmp_path / "elsewhere", [0, 1, 2, 3]))
    (tmp_path / "elsewhere").rename(directory)
    finish(late)
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
        finish(staged)
    assert not directory.exists()


def test_a_doubled_row_is_not_finished(tmp_path: Path) -> None:
    staged = write(tmp_path / "train", [0, 1, 2, 3, 1])
    with pytest.raises(RuntimeError, match=r"doubled, the first \[1\]"):
        finish(staged)


def test_a_row_of_another_length_is_not_finished(tmp_path: Path) -> None:
    staged = write(tmp_path / "train", [0, 1, 2, 3], values={2: torch.zeros(3, 2)})
    with pytest.raises(RuntimeError, match="row 2 has 3 values for 2 tokens"):
        finish(staged)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_not_finished(tmp_path: Path, bad: float) -> None:
    values = row(2)
    values[1, 1] = bad
    staged = write(tmp_path / "train", [0, 1, 2, 3], values={2: values})
    with pytest.raises(RuntimeError, match="not finite"):
        finish(staged)
    assert not (tmp_path / "train").exists()


def test_a_shard_with_honest_hash_but_other_rows_is_refused(cache: Path) -> None:
    """Someone rewrote a shard and its hash: the rows are still counted."""
    shard = sorted(cache.glob("shard-*"))[0]
    tensors = load_file(shard)
    tensors["rows"] = torch.tensor([2, 2])
    tensors["lengths"] = torch.tensor([2, 2])
    tensors["values"] = torch.zeros(4, 2)
    save_file(tensors, shard, metadata={"key": KEY.digest(), "content": content_of(tensors)})
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["shards"][shard.name]["sha256"] = file_sha256(shard)
    (cache / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="missing or doubled"):
        load_cache(cache, KEY, LENGTHS)
