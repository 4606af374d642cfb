"""The file of a ledger: append-only events in SQLite, one writer at a time.

Every change is one transaction that begins with the lock for writing (BEGIN IMMEDIATE), so that
what it reads, a budget say, still holds when it writes; after any end, a killed process included,
it is there completely or not at all. Triggers refuse to change or remove an event.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.remedies import remedy_of, unwritable
from nemo_gdpo.labeling.errors import LedgerError
from nemo_gdpo.labeling.state import Event, Kind

APPLICATION_ID = 0x4E474C31
"""In the file's head: `NGL1`."""
WAIT_SECONDS = 120.0
"""For another writer."""
_SCHEMA = (
    "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, pair TEXT, "
    "annotator TEXT, body TEXT NOT NULL) STRICT",
    "CREATE UNIQUE INDEX begun_once ON events(kind) WHERE kind IN ('begun', 'model')",
    "CREATE UNIQUE INDEX asked_once ON events(pair) WHERE kind = 'asked'",
    "CREATE INDEX by_pair ON events(pair, annotator, kind)",
    "CREATE TRIGGER never_changed BEFORE UPDATE ON events "
    "BEGIN SELECT RAISE(ABORT, 'events are never changed'); END",
    "CREATE TRIGGER never_removed BEFORE DELETE ON events "
    "BEGIN SELECT RAISE(ABORT, 'events are never removed'); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_HEAD = b"SQLite format 3\x00"


class Database:
    """Events in a file.

    Args:
        path: of the file.
        make: make it where it is missing.

    Raises:
        UserError: there is none, it is something else, or it cannot be opened.
    """

    def __init__(self, path: Path, *, make: bool) -> None:
        self.path = path
        self._refuse_other_files(make=make)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
        except OSError as error:
            told = f"{path}: cannot be opened ({error.strerror or error}); {remedy_of(error)}"
            raise unwritable(error, told) from None
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be opened ({error}); fix its permissions") from None
        try:
            with self._explained():
                self._begin(make=make)
        except BaseException:
            self._db.close()
            raise

    def _refuse_other_files(self, *, make: bool) -> None:
        if self.path.is_dir():
            raise UserError(f"label.ledger={self.path}: is a directory; give a file")
        if not self.path.exists():
            if not make:
                raise UserError(
                    f"label.ledger={self.path}: file not found; nemo-gdpo label select makes it"
                )
            return
        try:
            with self.path.open("rb") as file:
                head = file.read(len(_HEAD))
        except OSError as error:
            told = f"{self.path}: cannot be read ({error.strerror or error}); {remedy_of(error)}"
            raise unwritable(error, told) from None
        if head and head != _HEAD:
            raise self._no_ledger()

    def _no_ledger(self) -> UserError:
        return UserError(
            f"label.ledger={self.path}: is not a ledger of nemo-gdpo label; give another file"
        )

    def _begin(self, *, make: bool) -> None:
        mode = self._value("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise UserError(
                f"{self.path}: its file system does not take SQLite's write-ahead log (it gives "
                f"{mode}); put the ledger on a local disk"
            )
        self._db.execute("PRAGMA synchronous = FULL")
        if self._value("PRAGMA application_id") == APPLICATION_ID:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self._value("PRAGMA application_id") != APPLICATION_ID:
                if self._value("SELECT count(*) FROM sqlite_master") or not make:
                    raise self._no_ledger()
                for statement in _SCHEMA:
                    self._db.execute(statement)
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _value(self, statement: str) -> Any:
        return self._db.execute(statement).fetchone()[0]

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise LedgerError(
                f"{self.path}: {error}; what was recorded before is kept: free space, or wait for "
                "the other writer, then run the same command again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: is damaged ({error}); take a copy of it from before"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[Writer]:
        """Inside the block this process is the only writer; all it appends is kept, or nothing.

        Raises:
            LedgerError: the disk failed, or another writer does not end.
        """
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield Writer(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def events(self) -> list[Event]:
        """All events, in their order.

        Raises:
            LedgerError, UserError: the file cannot be read.
        """
        with self._explained():
            return Writer(self._db).events()

    def close(self) -> None:
        self._db.close()


class Writer:
    """Reads and appends inside one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def events(
        self, kind: Kind | None = None, pair: str | None = None, annotator: str | None = None
    ) -> list[Event]:
        """Events in their order; all, or those that fit what is given."""
        given = {"kind": kind, "pair": pair, "annotator": annotator}
        named = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in named)
        rows = self._db.execute(
            f"SELECT seq, kind, body FROM events{f' WHERE {where}' if where else ''} ORDER BY seq",
            tuple(named.values()),
        )
        return [Event(seq, found, json.loads(body)) for seq, found, body in rows]

    def append(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        *,
        pair: str | None = None,
        annotator: str | None = None,
    ) -> None:
        """Append an event."""
        text = json.dumps(body, ensure_ascii=False, allow_nan=False)
        self._db.execute(
            "INSERT INTO events (kind, pair, annotator, body) VALUES (?, ?, ?, ?)",
            (kind, pair, annotator, text),
        )

    def asked(self) -> set[str]:
        """Pairs that were asked about."""
        return {row[0] for row in self._db.execute("SELECT pair FROM events WHERE kind = 'asked'")}
