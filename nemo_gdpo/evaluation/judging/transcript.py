"""Every question to the judge and its answer: one JSON object a line, appended as they come.

A second run asks only what is missing. What a crash left of the last line is cut away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.generation.store import repair


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
            # Unbuffered: what a failed write left in a buffer would be written later, unasked.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); mend that") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            repair(path)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"{path}: another evaluation is writing to it; wait for it, or choose another "
                "output_dir"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    entry = json.loads(line)
                    key, answer = entry["key"], entry["answer"]
                except (ValueError, LookupError, TypeError):
                    key = answer = None
                if not isinstance(key, str) or not isinstance(answer, str):
                    raise UserError(
                        f"{self.path}, line {number}: damaged; remove the line, and it is asked "
                        "again"
                    )
                self._answers[key] = answer

    def get(self, key: str) -> str | None:
        """The answer to a question that was asked before."""
        return self._answers.get(key)

    def append(self, key: str, answer: str, entry: dict[str, Any]) -> None:
        """Keep an answer.

        Raises:
            EvaluationError: the disk is full, or failed. Lines before are intact.
        """
        line = json.dumps({"key": key, **entry, "answer": answer}, ensure_ascii=False)
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            rest = memoryview(line.encode("utf-8", "backslashreplace") + b"\n")
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.truncate(start)
                raise EvaluationError(
                    f"{self.path} cannot be written ({error.strerror}); the answers so far are "
                    "kept: free space, then run the same command again"
                ) from error
            self._answers[key] = answer

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
