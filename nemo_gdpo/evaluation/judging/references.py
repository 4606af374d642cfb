"""The data set's own responses, to compare with: id -> text."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from nemo_gdpo.data.checks import explicit_id, messages
from nemo_gdpo.data.readers import read_rows
from nemo_gdpo.errors import UserError

KEY = "evaluation.references_path"


def read_references(path: Path, field: str, ids: Collection[str]) -> dict[str, str]:
    """The reference of each prompt.

    Args:
        path: JSONL or Parquet with `id` and the field; lines of other prompts are left out.
        field: text, or messages of which the last is the response.
        ids: of the prompts.

    Raises:
        UserError: a missing file, a bad line (its number), an id twice with different texts, or
            a prompt without a reference.
    """
    if not path.is_file():
        raise UserError(f"{KEY}: {path} is not a file; correct the path")
    found: dict[str, str] = {}
    wanted = set(ids)
    for row in read_rows(path):
        if row.data.get("id") is None:
            raise UserError(f"{row.where}: no value for 'id'; give every line its prompt's")
        key = explicit_id(row)
        if key not in wanted:
            continue
        text = _response(row.data.get(field), row.where, field)
        if found.setdefault(key, text) != text:
            raise UserError(f"{row.where}: id {key!r} has another {field} above; keep one of them")
    missing = sorted(wanted - set(found))
    if missing:
        raise UserError(
            f"{KEY}: {path} has no {field} for {len(missing)} prompts ({missing[0]!r}"
            f"{', ...' if len(missing) > 1 else ''}); add them"
        )
    return found


def _response(value: Any, where: str, field: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise UserError(f"{where}: no value for {field!r}; set evaluation.reference_field")
    turns = messages(value, where, field)
    if turns[-1]["role"] != "assistant":
        raise UserError(f"{where}: {field} does not end with the assistant's message")
    return turns[-1]["content"]
