"""Check what no other tool reads: text files end with one newline, YAML, TOML and JSON parse.

    python tools/check_files.py

One line for each file that is wrong, and status 1.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
MADE = {".git", ".venv", "runs", "site", "dist", "outputs", "wandb", "__pycache__"}
"""Folders that hold what programs made."""
TEXT = {
    ".cff", ".cfg", ".html", ".in", ".ini", ".json", ".jsonl", ".lock", ".md", ".py", ".sh", ".sub",
    ".toml", ".txt", ".yaml", ".yml",
}  # fmt: skip
CONFLICT = ("<<<<<<< ", ">>>>>>> ")


class _Loader(yaml.SafeLoader):
    """Refuses what YAML allows and nobody means: a key that is there twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.YAMLError(f"the key {key} is there twice")
    return loader.construct_mapping(node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse_yaml(text: str) -> None:
    yaml.load(text, _Loader)


def _parse_lines(text: str) -> None:
    for line in text.splitlines():
        json.loads(line)


PARSERS: dict[str, Callable[[str], object]] = {
    ".cff": _parse_yaml,
    ".json": json.loads,
    ".jsonl": _parse_lines,
    ".toml": tomllib.loads,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
}
"""Suffix -> what raises where the text is not of that format."""


def files(folder: Path) -> Iterator[Path]:
    """Text files below a folder, in order."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            hidden = path.name.startswith(".") and path.name not in (".github", ".ci")
            if path.name not in MADE and not hidden:
                yield from files(path)
        elif path.suffix in TEXT or path.name == "Makefile":
            yield path


def problems(path: Path) -> Iterator[str]:
    """What is wrong with one file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        yield f"is not UTF-8 ({error.reason} at byte {error.start})"
        return
    if text and not text.endswith("\n"):
        yield "does not end with a newline"
    if text.endswith("\n\n"):
        yield "ends with empty lines"
    for number, line in enumerate(text.splitlines(), start=1):
        if line != line.rstrip():
            yield f"line {number}: white space at the end"
        if line.startswith(CONFLICT):
            yield f"line {number}: a merge conflict"
    parse = PARSERS.get(path.suffix)
    if parse is not None:
        try:
            parse(text)
        except (ValueError, yaml.YAMLError) as error:
            yield f"cannot be parsed: {' '.join(str(error).split())}"


def main(root: Path = ROOT) -> int:
    """Check every text file of the checkout; returns the exit status."""
    found = [f"{path.relative_to(root)}: {what}" for path in files(root) for what in problems(path)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
