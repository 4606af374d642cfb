"""The base of every section of the configuration.

A section declares each key once: type and range, default, and help (the text below the field). The
command line, composed files, the documentation and Python all read them here.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from nemo_gdpo.io.text import is_text

_LONGEST_PATH, _LONGEST_NAME = 4000, 255
"""Bytes that a path, and each name in it, may have on the file systems of Linux."""


def _words(text: str) -> str:
    """Refuse what no file can hold: half of a surrogate pair, which a shell gives for a byte that
    is no UTF-8."""
    if not is_text(text):
        raise ValueError("it is no text in UTF-8")
    return text


def _name(text: str) -> str:
    """Refuse what no file can be called, before anything asks the file system for it."""
    if "\0" in _words(text):
        raise ValueError("it holds a zero byte")
    if max(len(part.encode()) for part in text.split("/")) > _LONGEST_NAME:
        raise ValueError(f"it holds a name of more than {_LONGEST_NAME} bytes")
    if len(text.encode()) > _LONGEST_PATH:
        raise ValueError(f"it has more than {_LONGEST_PATH} bytes")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_name)]
"""A path or a name: null stands for none, never empty text."""
Words = Annotated[str, Field(min_length=1), AfterValidator(_words)]
"""Text of any length that is not empty."""


def _day(text: str) -> str:
    """The text, if it is a day.

    Raises:
        ValueError: it is not.
    """
    if datetime.date.fromisoformat(text).isoformat() != text:
        raise ValueError(f"{text} is not written as 2026-01-31")
    return text


Day = Annotated[str, AfterValidator(_day)]
"""A day, as 2026-01-31."""

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|.|\Z)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}


def _unescaped(text: str) -> str:
    """What a text with escapes stands for: on the command line `\\n` is two characters."""

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) == 1 or not code:
            raise ValueError(
                f"the escape \\{code} is not known; write \\\\ for a backslash, \\n, \\t or \\u000a"
            )
        number = int(code[1:], 16)
        if number > sys.maxunicode:
            raise ValueError(f"the escape \\{code} is no character; correct it")
        return chr(number)

    found = _ESCAPE.sub(character, text).encode("utf-16", "surrogatepass")
    try:
        return found.decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("holds half of a surrogate pair; write the whole character") from None


Written = Annotated[
    Words,
    AfterValidator(_unescaped),
    PlainSerializer(lambda text: text.replace("\\", "\\\\")),
]
"""A text that is used as it is written, escapes included: \\n is a new line, \\\\ a backslash."""


def _at_home(path: str) -> str:
    """A shell leaves `key=~/x` as it is. Of a user that is not known the path stays."""
    with contextlib.suppress(RuntimeError):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    return path


PathText = Annotated[Text, AfterValidator(_at_home)]
"""A path; `~` is the user's own directory."""

_INTERPOLATION = "interpolation"
"""Extra data of a field: how a composed file writes a default that depends on something else."""


class OnResume(Enum):
    """What becomes of a key that has another value when a training run is resumed."""

    FREE = "may change"
    """The new value takes effect."""
    FIXED = "may not change"
    """The run is refused, with both values."""
    CONTENT = "only what it makes of the data or the model counts"
    """The run is refused when the weights or the tokens are others by it."""


FREE, FIXED, CONTENT = OnResume.FREE, OnResume.FIXED, OnResume.CONTENT


class Section(BaseModel):
    """A section: unknown keys are errors, values are not coerced, instances do not change.

    An integer is accepted where a real number is meant; text is never turned into a number.
    """

    on_resume: ClassVar[OnResume | None] = None
    """Holds for every key of the section that does not say otherwise in its annotation."""
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""The same for a section that is a frozen dataclass, an ordinary object in Python. Strictness is
stated at its fields: under a strict configuration a mapping could not become one."""


def from_environment(variable: str) -> Any:
    """A default that is read from an environment variable; null where it is not set."""
    return Field(
        default_factory=lambda: os.environ.get(variable),
        json_schema_extra={_INTERPOLATION: f"${{oc.env:{variable},null}}"},
    )


def derived(compute: Callable[[dict[str, Any]], Any], interpolation: str) -> Any:
    """A default that is worked out from fields above it.

    Args:
        compute: from the validated fields above to the value.
        interpolation: the same in OmegaConf's terms, for a composed file.
    """
    return Field(default_factory=compute, json_schema_extra={_INTERPOLATION: interpolation})


def fields_of(section: type[Any]) -> Mapping[str, FieldInfo]:
    """Name -> declaration of each key of a section.

    Raises:
        TypeError: `section` is neither a `Section` nor a dataclass of pydantic's.
    """
    if issubclass(section, BaseModel):
        return section.model_fields
    if is_pydantic_dataclass(section):
        return section.__pydantic_fields__
    raise TypeError(f"{section} is not a section of the configuration")


def section_of(field: FieldInfo) -> type[Any] | None:
    """The section that a field holds; None for a key with a value."""
    kind = field.annotation
    if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_pydantic_dataclass(kind)):
        return kind
    return None


def on_resume_of(section: type[Any], name: str) -> OnResume | None:
    """What a key of a section says of a resumed run; None where nothing is declared."""
    said = [m for m in fields_of(section)[name].metadata if isinstance(m, OnResume)]
    own: OnResume | None = said[0] if said else section.on_resume
    return own


def default_of(field: FieldInfo) -> Any:
    """A field's default as plain data, an interpolation where it depends on something else."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and _INTERPOLATION in extra:
        return extra[_INTERPOLATION]
    return to_jsonable_python(
        field.get_default(call_default_factory=True), inf_nan_mode="constants"
    )


def defaults_of(section: type[Any], *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """All keys of a section at their defaults, as plain nested data.

    Args:
        section: what to lay out.
        without: names of its fields to leave out.
    """
    found: dict[str, Any] = {}
    for name, field in fields_of(section).items():
        inner = section_of(field)
        if name not in without:
            found[name] = default_of(field) if inner is None else defaults_of(inner)
    return found


def plain_data(config: Section) -> dict[str, Any]:
    """A configuration as nested dictionaries, lists and values; infinities stay."""
    plain = to_jsonable_python(config, inf_nan_mode="constants")
    assert isinstance(plain, dict)
    return plain
