"""JSON objects out of files that people wrote: one a line, or one array in a `.json` file.

A line ends in a line feed and nowhere else: U+2028 and its like are part of a text, and
`str.splitlines` would cut there. Every mistake names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError

Take = Callable[[UserError], None]
"""What is done about a mistake in one line; it raises, or the next line is read."""
_OTHER_KINDS = (
    (b"\x1f\x8b", "compressed with gzip", "decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it"),
    (b"BZh", "compressed with bzip2", "decompress it"),
    (b"\xfd7zXZ\x00", "compressed with xz", "decompress it"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow file", "give the directory that `datasets` saved, or write JSON lines"),
    (b"\xff\xfe", "UTF-16, not UTF-8", "save the file as UTF-8"),
    (b"\xfe\xff", "UTF-16, not UTF-8", "save the file as UTF-8"),
)
_BOM = b"\xef\xbb\xbf"


class _TwiceError(ValueError):
    """A key stands twice in one object."""


def refuse(error: UserError) -> None:
    """Raise: a mistake in one line stops the reading."""
    raise error


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _parse(text: bytes, where: str, unit: str) -> Any:
    """The value of one line, or of a whole file.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object_of)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        said = error.msg.removesuffix(" at")
        raise UserError(f"{where}: not valid JSON ({said} at {at}); {unit}") from None
    except _TwiceError as error:
        raise UserError(
            f"{where}: the key {str(error)!r} stands twice in one object; remove one"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: JSON is nested too deeply; flatten this line") from None
    except ValueError:  # an integer of thousands of digits
        raise UserError(f"{where}: a number has too many digits; shorten it") from None


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        UserError: it is no JSON, no object, or holds a key twice.
    """
    value = _parse(line, where, "each line must be one complete JSON object")
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: a JSON {type(value).__name__}, not an object; write one object per line"
        )
    return value


def read_objects(file: Path, take: Take = refuse) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(file and line, number from 1, object) of every line, or of every item of an array.

    Args:
        file: JSON lines; a `.json` file may hold one array.
        take: is told each mistake in a line.

    Raises:
        UserError: the file cannot be read, is of another kind, or what `take` raises.
    """
    try:
        with file.open("rb") as lines:
            head = lines.read(512)
            _refuse_other_kinds(head, file)
            lines.seek(0)
            if file.suffix == ".json" and head.removeprefix(_BOM).lstrip().startswith(b"["):
                yield from _items(lines.read(), file, take)
            elif file.suffix == ".json" and (reason := _one_object(head, file)):
                raise UserError(f"{file}: {reason}")
            else:
                yield from _lines(enumerate(lines, start=1), file, take)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror or error}); mend its permissions or the disk"
        ) from None


def refuse_other_kinds(file: Path) -> None:
    """Refuse a file that is no text in UTF-8, by its first bytes.

    Raises:
        UserError: it is compressed, say; the message tells what it is.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        _refuse_other_kinds(opened.read(16), file)


def _refuse_other_kinds(head: bytes, file: Path) -> None:
    for magic, kind, remedy in _OTHER_KINDS:
        if head.startswith(magic):
            raise UserError(f"{file}: is {kind}; {remedy}")


def _one_object(head: bytes, file: Path) -> str | None:
    """Why a file that is one object over several lines is not JSON lines."""
    first = head.removeprefix(_BOM).partition(b"\n")[0].strip()
    if first != b"{":
        return None
    try:
        value = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None  # the first line says what is wrong
    keys = ", ".join(map(repr, list(value)[:5])) if isinstance(value, dict) else ""
    return f"one JSON object over several lines (its keys: {keys}); write one object per line"


def _items(text: bytes, file: Path, take: Take) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for number, value in enumerate(_parse(text, str(file), "mend the array"), start=1):
        where = f"{file}, item {number}"
        if isinstance(value, dict):
            yield where, number, value
        else:
            take(UserError(f"{where}: a JSON {type(value).__name__}, not an object; write objects"))


def _lines(
    lines: Iterator[tuple[int, bytes]], file: Path, take: Take
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    blank: int | None = None
    for number, line in lines:
        where = f"{file}, line {number}"
        if not line.strip():
            blank = number if blank is None else blank
            continue
        if blank is not None:
            # Blank lines at the end are how editors end a file; in the middle, a row got lost.
            take(UserError(f"{file}, line {blank}: the line is blank; remove it"))
            blank = None
        try:
            found = json_object(line, where)
        except UserError as error:
            take(error)
        else:
            yield where, number, found


def text_lines(file: Path) -> list[str]:
    """The lines of a text file in UTF-8, cut at line feeds only, without their ends.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    text = file.read_bytes().decode("utf-8-sig")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
