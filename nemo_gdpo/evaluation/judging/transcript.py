"""Every question to the judge and its answer: one JSON object a line, appended as they come.

A second run asks only what is missing. What a crash left of the last line is cut away. What was
refused, or answered in part, is written down as well, and is asked again.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.io.locks import BusyError
from nemo_gdpo.io.remedies import remedy_of, unwritable
from nemo_gdpo.io.rows import RowFile, complete_lines, encode_row, repair
from nemo_gdpo.io.text import whole_characters

NO_ANSWER = ("refused", "cut")
"""Fields of a line that is no answer: what the server said, or what there is of the answer."""


class Transcript:
    """The file, locked while it is open; safe for several threads.

    Args:
        path: made if needed.

    Raises:
        UserError: another evaluation writes to it, a line is damaged, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = RowFile(path, lock=True)
        except BusyError:
            raise UserError(
                f"{path}: another evaluation is writing to it; wait for it, or choose another "
                "output_dir"
            ) from None
        except OSError as error:
            told = f"{path}: cannot be written ({error.strerror}); {remedy_of(error)}"
            raise unwritable(error, told) from None
        try:
            repair(path)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        for number, line in complete_lines(self.path):
            try:
                entry = json.loads(line)
                if isinstance(entry["key"], str) and any(
                    isinstance(entry.get(name), str) for name in NO_ANSWER
                ):
                    continue
                key, answer = entry["key"], whole_characters(entry["answer"])
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                key = answer = None
            if not isinstance(key, str) or not isinstance(answer, str):
                raise UserError(
                    f"{self.path}, line {number}: damaged; remove the line, and it is asked again"
                )
            self._answers[key] = answer

    def get(self, key: str) -> str | None:
        """The answer to a question that was asked before."""
        return self._answers.get(key)

    def note(self, key: str, entry: dict[str, Any]) -> None:
        """Write down a question that has no answer: its entry says why by one of `NO_ANSWER`.

        Raises:
            EvaluationError: see `append`.
        """
        line = encode_row({"key": key, **entry})
        with self._lock:
            self._explain_write_errors(lambda: self._file.append(line))

    def append(self, key: str, answer: str, entry: dict[str, Any]) -> None:
        """Keep an answer.

        Raises:
            EvaluationError: the disk is full, or failed. Lines before are intact.
        """
        line = encode_row({"key": key, **entry, "answer": answer})
        with self._lock:
            self._explain_write_errors(lambda: self._file.append(line))
            self._answers[key] = answer

    def _explain_write_errors(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise EvaluationError(
                f"{self.path} cannot be written ({error.strerror}); the answers so far are "
                f"kept: {remedy_of(error)}, then run the same command again"
            ) from error

    def close(self) -> None:
        """Sync all answers to disk, and let the next evaluation write.

        Raises:
            EvaluationError: the disk failed.
        """
        self._explain_write_errors(self._file.close)

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(EvaluationError):  # the first failure is the one to report
            self.close()
