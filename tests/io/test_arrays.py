"""The cache: batches are complete or absent, an interrupted computation resumes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.arrays import (
    Array,
    Cache,
    compute_cached,
    content_key,
    length_batches,
)

TEXTS = [f"text {n}" for n in range(10)]


def fixed_batches(size: int) -> Callable[[Sequence[str]], Iterator[Sequence[str]]]:
    """Batches of `size` items in the order given."""
    return lambda items: (items[at : at + size] for at in range(0, len(items), size))


class Counting:
    """Squares of a text's number; fails at one of them."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.fail_at = fail_at

    def __call__(self, batch: Sequence[str]) -> list[Array]:
        numbers = [int(text.split()[1]) for text in batch]
        if self.fail_at in numbers:
            raise KeyboardInterrupt
        self.seen += batch
        return [np.array([float(n * n)]) for n in numbers]


def run(cache: Cache, compute: Counting) -> list[float]:
    found = compute_cached(
        cache, TEXTS, lambda t: content_key("x", t), compute, fixed_batches(3), label="t"
    )
    return [float(value[0]) for value in found]


def test_an_interrupted_computation_resumes(tmp_path: Path) -> None:
    squares = [float(n * n) for n in range(10)]
    with Cache(tmp_path / "new" / "c.sqlite") as cache, pytest.raises(KeyboardInterrupt):
        run(cache, Counting(fail_at=7))
    with Cache(tmp_path / "new" / "c.sqlite") as cache:
        rest = Counting()
        assert run(cache, rest) == squares
        assert rest.seen == TEXTS[6:]
        nothing = Counting()
        assert run(cache, nothing) == squares
        assert nothing.seen == []


def test_equal_texts_are_computed_once(tmp_path: Path) -> None:
    with Cache(tmp_path / "c.sqlite") as cache:
        compute = Counting()
        found = compute_cached(
            cache, ["a 1", "a 2", "a 1"], content_key, compute, fixed_batches(9), label="t"
        )
    assert [float(value[0]) for value in found] == [1.0, 4.0, 1.0]
    assert compute.seen == ["a 1", "a 2"]


def test_arrays_keep_their_type_and_value(tmp_path: Path) -> None:
    single = np.array([1.1, -0.0, 3e38], dtype=np.float32)
    double = np.array([1.1, np.nan, -np.inf])
    with Cache(tmp_path / "c.sqlite") as cache:
        cache.put({"s": single, "d": double})
        found = cache.get(["d", "s", "none"] + [f"k{n}" for n in range(1200)])
    assert set(found) == {"s", "d"}
    assert found["s"].dtype == np.float32
    np.testing.assert_array_equal(found["s"], single)
    np.testing.assert_array_equal(found["d"], double)


def test_parts_of_a_key_have_boundaries() -> None:
    keys = [("ab", "c"), ("a", "bc"), (["ab", "c"],), ("ab", "c", None), (1, "x"), ("1", "x")]
    assert len({content_key(*key) for key in keys}) == len(keys)
    assert content_key("\ud800") != content_key("\ud801")  # half a character, as JSON may hold it


def test_batches_of_similar_length() -> None:
    items = ["a" * n for n in (1, 9, 3, 3, 20, 2)]
    cut = [[len(item) for item in batch] for batch in length_batches(len, 10)(items)]
    assert cut == [[20], [9], [3, 3, 2], [1]]


def test_damage_and_a_full_disk_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"something else, and long enough to be read" * 100)
    with pytest.raises(UserError, match=r"c\.sqlite: damaged .*remove the file"):
        Cache(tmp_path / "c.sqlite")
    with Cache(tmp_path / "d.sqlite") as cache:
        cache.put({"a": np.zeros(10)})
        cache._db.execute("PRAGMA max_page_count = 4")
        with pytest.raises(RunError, match=r"full.*what is there is intact"):
            cache.put({f"k{n}": np.zeros(4000) for n in range(9)})
        assert set(cache.get(["a", "k0"])) == {"a"}
        cache._db.execute("PRAGMA max_page_count = 4000")
        cache.put({"k0": np.zeros(4000)})
        assert set(cache.get(["a", "k0"])) == {"a", "k0"}


def test_another_process_at_work(tmp_path: Path) -> None:
    with Cache(tmp_path / "c.sqlite") as cache:
        cache._db.execute("PRAGMA busy_timeout = 10")
        other = sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match="locked"):
            cache.put({"a": np.zeros(1)})
        other.close()
