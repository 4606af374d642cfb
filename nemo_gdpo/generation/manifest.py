"""The manifest of what all samples of a directory share: another run may add, not mix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_json

MANIFEST = "manifest.json"
FORMAT = 1
DECISIVE = ("format", "model", "settings", "engine")
"""Sections that have to agree; the others inform."""
_MODEL_PATH = "model.path"
"""The same weights may lie elsewhere; their hash tells."""


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`settings.seed is 1 there and 2 here`, for each decisive value."""
    there, here = (
        dict(_leaves({name: section.get(name) for name in DECISIVE})) for section in (found, wanted)
    )
    names = [name for name in sorted(there.keys() | here.keys()) if name != _MODEL_PATH]
    return [
        f"{name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"
        for name in names
        if there.get(name) != here.get(name)
    ]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:16]}...{text[-4:]}"


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest that is there; None without one.

    Raises:
        UserError: it cannot be read.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; restore it")
    return found


def sampled_date(directory: Path) -> str | None:
    """Day that the template wrote for the samples that are there; None without any, or a clock.

    Raises:
        UserError: the manifest cannot be read.
    """
    settings = (read_manifest(directory) or {}).get("settings")
    date = settings.get("date") if isinstance(settings, dict) else None
    return None if date is None else str(date)


def check_manifest(directory: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a directory that holds samples of another model or other settings.

    Raises:
        UserError: naming every difference.
    """
    found = read_manifest(directory)
    if found is None:
        return
    different = differences(found, json.loads(json.dumps(wanted)))
    if different:
        raise UserError(
            f"output_dir: {directory} holds samples of another run ({'; '.join(different)}); "
            "choose another output_dir, or set them as they are there"
        )


def write_manifest(directory: Path, wanted: Mapping[str, Any]) -> None:
    """Write it, keeping what earlier runs said about their prompts and sweeps."""
    merged = dict(wanted)
    found = read_manifest(directory) or {}
    for name in ("points", "prompt_files"):
        earlier = found.get(name, [])
        merged[name] = [*earlier, *(entry for entry in wanted[name] if entry not in earlier)]
    write_json(directory / MANIFEST, merged)
