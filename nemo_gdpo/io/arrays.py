"""A cache of arrays computed for texts, so that an interrupted evaluation can resume.

One SQLite file holds arrays under a hash of everything that decides them (model, settings, text).
A batch is one transaction: after any end, a killed process included, it is there completely or not
at all. There is nothing to invalidate: another model or another text has another key.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.remedies import remedy_of, unwritable
from nemo_gdpo.progress import progress_bar

Array = npt.NDArray[np.float64] | npt.NDArray[np.float32]
T = TypeVar("T")
_ASKED_AT_ONCE = 500
_KINDS: dict[str, np.dtype[Any]] = {"f4": np.dtype("<f4"), "f8": np.dtype("<f8")}


def content_key(*parts: Any) -> str:
    """Hash of what decides a value: JSON-like parts, their boundaries included."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """One-dimensional arrays by key.

    Args:
        path: made if needed.

    Raises:
        UserError: it is not a cache of this format, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        except OSError as error:
            told = f"{path}: cannot be opened ({error.strerror or error}); {remedy_of(error)}"
            raise unwritable(error, told) from None
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be opened ({error}); fix its permissions") from None
        with self._readable():
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS arrays "
                "(key TEXT PRIMARY KEY, kind TEXT NOT NULL, data BLOB NOT NULL) WITHOUT ROWID"
            )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RunError(
                f"{self.path} cannot be written ({error}); what is there is intact: "
                f"{_remedy(error)}, then run the same command again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: damaged ({error}); remove the file") from None

    def get(self, keys: Sequence[str]) -> dict[str, Array]:
        """Those of `keys` that are there."""
        found: dict[str, Array] = {}
        with self._readable():
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                part = keys[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, kind, data FROM arrays WHERE key IN ({marks})"
                for key, kind, data in self._db.execute(query, list(part)):
                    found[key] = np.frombuffer(data, dtype=_KINDS[kind])
        return found

    def put(self, values: dict[str, Array]) -> None:
        """Keep all of `values`, or none."""
        rows = [
            (key, "f4" if value.dtype == np.float32 else "f8", _bytes(value))
            for key, value in values.items()
        ]
        with self._readable():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk has rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()


def _remedy(error: sqlite3.OperationalError) -> str:
    told = str(error).lower()
    if "full" in told:
        return "free space"
    if "locked" in told or "busy" in told:
        return "let the other evaluation end"
    if "readonly" in told or "read-only" in told or "unable to open" in told:
        return "fix the permissions"
    return "look at the disk"


def _bytes(value: Array) -> bytes:
    return value.astype(_KINDS["f4" if value.dtype == np.float32 else "f8"]).tobytes()


def compute_cached(
    cache: Cache,
    items: Sequence[T],
    key_of: Callable[[T], str],
    compute: Callable[[Sequence[T]], Sequence[Array]],
    batches: Callable[[Sequence[T]], Iterator[Sequence[T]]],
    *,
    label: str,
) -> list[Array]:
    """An array for each item, from the cache or computed now and kept batch by batch.

    Args:
        items: equal keys are computed once.
        key_of: see `content_key`.
        compute: arrays [..] of one batch, in its order.
        batches: cuts what is missing into batches, in any order.
        label: of the progress bar.
    """
    keys = [key_of(item) for item in items]
    found = cache.get(list(dict.fromkeys(keys)))
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
    if missing:
        name = {id(item): key for key, item in missing.items()}
        with progress_bar(total=len(missing), unit="text", label=label, enabled=True) as bar:
            for batch in batches(list(missing.values())):
                made = dict(zip([name[id(item)] for item in batch], compute(batch), strict=True))
                cache.put(made)
                found.update(made)
                bar.update(len(batch))
    return [found[key] for key in keys]


def length_batches(
    length_of: Callable[[T], int], tokens: int
) -> Callable[[Sequence[T]], Iterator[Sequence[T]]]:
    """Batches of similar length: longest x count stays within `tokens`, one item at least.

    Longest first, so that what does not fit into memory shows at once.
    """

    def cut(items: Sequence[T]) -> Iterator[Sequence[T]]:
        ordered = sorted(items, key=length_of, reverse=True)
        start = 0
        while start < len(ordered):
            size = max(1, tokens // max(1, length_of(ordered[start])))
            yield ordered[start : start + size]
            start += size

    return cut
