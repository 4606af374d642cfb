"""The keys of a configuration with type, default and help, from their declarations."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from nemo_gdpo.config.base import OnResume, default_of, fields_of, on_resume_of, section_of
from nemo_gdpo.config.composition import config_dir, group_options
from nemo_gdpo.config.root import Root

_WORDS = {int: "integer", float: "number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key as help and documentation show it."""

    name: str
    """Dotted key."""
    kind: str
    """Type and range, in words."""
    default: str
    """Default value, as YAML."""
    help: str
    owners: tuple[str, ...] = ()
    """Sections of the root's choice that have it; none where every configuration has it."""
    on_resume: OnResume | None = None
    """What becomes of another value when a run is resumed; None where nothing is declared."""


def _bounds(metadata: Iterable[Any]) -> str:
    words = []
    for constraint in metadata:
        match constraint:
            case Gt(gt=limit):
                words.append(f" > {limit:g}")
            case Ge(ge=limit):
                words.append(f" >= {limit:g}")
            case Lt(lt=limit):
                words.append(f" < {limit:g}")
            case Le(le=limit):
                words.append(f" <= {limit:g}")
            case FieldInfo(metadata=nested):  # a Field() inside Annotated
                words.append(_bounds(nested))
    return " and".join(dict.fromkeys(word for word in words if word))


def describe_type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type and its range in words: `integer >= 1`, `db | subtb | tb`, `text or null`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return describe_type(inner, (*metadata, *more))
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        parts = [describe_type(part, metadata) for part in get_args(annotation)]
        return " or ".join(part for part in parts if part != "null") + (
            " or null" if "null" in parts else ""
        )
    if annotation is type(None):
        return "null"
    if origin is tuple:
        inner = dict.fromkeys(describe_type(p) for p in get_args(annotation) if p is not ...)
        return f"list of {', '.join(inner)}"
    if origin is dict:
        return "mapping"
    return _WORDS.get(annotation, "value") + _bounds(metadata)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _key(section: type[Any], name: str, field: FieldInfo, owners: tuple[str, ...]) -> Key:
    return Key(
        name,
        describe_type(field.annotation, field.metadata),
        _shown(default_of(field)),
        " ".join((field.description or "").split()),
        owners,
        on_resume_of(section, name.rpartition(".")[2]),
    )


def _keys_of(section: type[Any], prefix: str, owners: tuple[str, ...]) -> Iterator[Key]:
    for name, field in fields_of(section).items():
        inner = section_of(field)
        if inner is not None:
            yield from _keys_of(inner, f"{prefix}{name}.", owners)
        elif name != "name" or not owners:
            yield _key(section, f"{prefix}{name}", field, owners)


def keys(root: Root[Any]) -> list[Key]:
    """Every key of a root, in the order of their declaration.

    A choice's sections come one after the other, each key with its owner.
    """
    found: list[Key] = []
    for name, field in fields_of(root.schema).items():
        inner = section_of(field)
        if name == root.choice:
            for owner, section in root.sections.items():
                found += _keys_of(section, f"{name}.", (owner,))
        elif inner is not None:
            found += _keys_of(inner, f"{name}.", ())
        else:
            found.append(_key(root.schema, name, field, ()))
    return found


def render_help(root: Root[Any]) -> str:
    """Groups with their presets, then every key with type, default and help."""
    lines = []
    options = group_options(config_dir(), root)
    if options:
        lines.append("groups and their presets:")
        lines += [f"  {group + '=':<12} {' | '.join(names)}" for group, names in options.items()]
        lines.append("")
    lines.append("keys (key=value):")
    for key in keys(root):
        owner = f", with {root.choice}={'|'.join(key.owners)}" if key.owners else ""
        lines.append(f"  {key.name}={key.default}  ({key.kind}{owner})")
        lines += textwrap.wrap(key.help, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"
