"""Pairs that stay on disk: the format and fingerprint of before, damage, and a rank's memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from nemo_gdpo.data import PreferenceDataset, TokenizedPair, dataset, load_prepared, save_prepared
from nemo_gdpo.data.build import Spool
from nemo_gdpo.data.dataset import collect_arrays
from nemo_gdpo.data.places import PlaceTable, UsedNames
from nemo_gdpo.data.tokenize import TokenizeStats
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.training.reference import response_lengths
from tests.data.test_dataset import PAIRS, make

THREE = [*PAIRS, replace(PAIRS[0], id='ü "\u2028', meta={"a": "é"})]
FINGERPRINT = "382de69690db63110f8eddde366eefb8b5a7153033a2de46c968a77ec77e72a5"
"""Of these pairs, from before they were mapped."""


def columns() -> dict[str, Any]:
    arrays = make(THREE).arrays
    return {name: vars(arrays)[name] for name in ("tokens", "offsets", "complete", "scores")}


def test_the_fingerprint_is_that_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(THREE).fingerprint == FINGERPRINT
    for block in (1, 2):  # pieces end everywhere
        monkeypatch.setattr(dataset, "BLOCK", block)
        assert make(THREE).fingerprint == FINGERPRINT


def test_what_was_prepared_before_loads(tmp_path: Path) -> None:
    """The directory as it was written with the library's own function and a list of names."""
    old, new = tmp_path / "old", tmp_path / "new"
    save_prepared(make(THREE), new)
    old.mkdir()
    save_file(columns(), old / "pairs.safetensors")
    arrays = make(THREE).arrays
    with (old / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for name, meta in zip(arrays.ids, arrays.metas, strict=True):
            file.write(json.dumps({"id": name, "meta": meta}) + "\n")
    (old / "manifest.json").write_bytes((new / "manifest.json").read_bytes())
    loaded = load_prepared(old)
    assert (loaded.fingerprint, list(loaded)) == (FINGERPRINT, THREE)
    assert json.loads((new / "manifest.json").read_text())["version"] == 1
    # And what is written now is the same to the byte.
    assert (new / "pairs.safetensors").read_bytes() == save(columns())
    assert (new / "pairs.jsonl").read_bytes() == (old / "pairs.jsonl").read_bytes()


def test_columns_of_names_are_like_lists(tmp_path: Path) -> None:
    arrays = load_prepared(save_prepared(make(THREE), tmp_path / "prepared")).arrays
    ids = [pair.id for pair in THREE]
    assert list(arrays.ids) == ids and arrays.ids[1:] == ids[1:] and len(arrays.ids) == 3
    assert (arrays.ids[-1], arrays.ids[0]) == (ids[2], ids[0])
    assert json.loads(arrays.metas[2]) == {"a": "é"}
    with pytest.raises(IndexError):
        arrays.ids[3]
    assert not arrays.tokens.flags.writeable


def test_chunks_make_what_one_list_makes(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "not" / "there" / "yet")
    for some in (THREE[:1], [], THREE[1:]):
        spool.append(collect_arrays(some))
    spooled = PreferenceDataset(
        spool.finish(), end_token_id=2, pad_token_id=0, stats=TokenizeStats()
    )
    assert spooled.fingerprint == FINGERPRINT and list(spooled) == THREE
    assert list(tmp_path.iterdir()) == []  # the files have no name
    assert list(response_lengths(spooled)) == response_lengths(THREE) == [3, 1, 2, 2, 3, 1]


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with Path("/dev/full").open("wb", buffering=0) as full:
        spool._files["tokens"] = full
        with pytest.raises(RunError, match=r"be written \(No space left on device\)"):
            spool.append(collect_arrays(PAIRS))
    spool.close()


def test_damage_is_found(tmp_path: Path) -> None:
    target = save_prepared(make(THREE), tmp_path / "prepared")
    file, manifest = target / "pairs.safetensors", target / "manifest.json"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for damaged, said in (
        (whole[:-1] + bytes([1 - whole[-1]]), "a complete response must|fingerprint"),
        (whole[:-1], "damaged"),
        (whole + b" ", "damaged"),
        (whole[:4], "damaged"),
        ((1 << 40).to_bytes(8, "little") + whole[8:], "damaged .*no header"),
        (whole[:8] + b"[]".ljust(length) + whole[8 + length :], "damaged .*no header"),
        (whole.replace(b'"I32"', b'"F16"', 1), "damaged"),
        (whole.replace(b"[17]", b"[16]", 1), "damaged"),
    ):
        assert damaged != whole
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=said):
            load_prepared(target)
    file.write_bytes(whole)
    names = (target / "pairs.jsonl").read_bytes()
    (target / "pairs.jsonl").write_bytes(names.replace(b"}\n", b"]\n", 1))
    with pytest.raises(UserError, match="damaged"):
        load_prepared(target)
    (target / "pairs.jsonl").write_bytes(names)
    # What another rank has looked through must still be what is named.
    assert list(load_prepared(target, verified=FINGERPRINT)) == THREE
    with pytest.raises(UserError, match="does not match its fingerprint"):
        load_prepared(target, verified="0" * 64)
    manifest.unlink()
    with pytest.raises(UserError, match="not a prepared data set"):
        load_prepared(target, verified=FINGERPRINT)


LOAD = """
import json, sys
from nemo_gdpo.data.prepared import load_prepared
def anonymous():
    with open("/proc/self/status") as file:
        found = dict(line.split(":", 1) for line in file)
    return int(found["RssAnon"].split()[0]) * 1024
load_prepared(sys.argv[1], verified=sys.argv[2])
before = anonymous()
data = load_prepared(sys.argv[3], verified=sys.argv[4])
seen = [data[i].id for i in range(0, len(data), len(data) // 50)]
print(json.dumps([len(data), anonymous() - before]))
"""


def _many(count: int, directory: Path) -> tuple[str, str]:
    """Pairs of 90 tokens with meta."""
    spool, size = Spool(directory), 1000
    for start in range(0, count, size):
        chunk = collect_arrays(
            TokenizedPair(
                f"pair-{i:07d}",
                tuple(range(30)),
                replace(PAIRS[1].chosen, ids=(*range(3, 32), 2)),
                replace(PAIRS[1].chosen, ids=(*range(4, 33), 2)),
                meta={"source": "a data set", "number": i},
            )
            for i in range(start, start + size)
        )
        spool.append(chunk)
    made = PreferenceDataset(spool.finish(), end_token_id=2, pad_token_id=0, stats=TokenizeStats())
    return str(save_prepared(made, directory / str(count))), made.fingerprint


def test_the_memory_of_a_rank_is_its_index(tmp_path: Path) -> None:
    few = _many(1000, tmp_path)
    sizes = {}
    for count in (10_000, 60_000):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, *few, *_many(count, tmp_path)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        pairs, sizes[count] = json.loads(done.stdout)
        assert pairs == count
    # 360 bytes of tokens and 140 of names a pair; the index takes 8, and twice that while made.
    assert (sizes[60_000] - sizes[10_000]) / 50_000 < 40


def test_places_are_those_of_a_dictionary() -> None:
    draw = random.Random(3)
    table, known = PlaceTable(), {}
    keys = [draw.getrandbits(63) - (1 << 62) for _ in range(2000)] + [i << 40 for i in range(900)]
    for number, key in enumerate(keys + keys[::7]):
        text = f"zeile {number} é\ud800"
        assert table.add(key, text) == known.get(key)
        known.setdefault(key, text)
    assert len(table) == len(known) and set(table) == set(known)
    assert all(key in table and table.find(key) == text for key, text in known.items())
    assert table.find(5) is None and 5 not in table


class SameHash(str):
    def __hash__(self) -> int:
        return -7


def test_names_of_one_hash_are_told_apart() -> None:
    used = UsedNames()
    names = [SameHash(name) for name in ("a", "b\0b", "c", "")]
    assert [used.add(name, f"line {i}") for i, name in enumerate(names)] == [None] * 4
    assert [used.add(name, "later") for name in names] == [f"line {i}" for i in range(4)]


def test_lengths_are_those_of_the_segments() -> None:
    assert np.array_equal(make(THREE).lengths_B3(), [[2, 3, 1], [1, 2, 2], [2, 3, 1]])
