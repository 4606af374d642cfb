"""One row of `generations-*.jsonl`, read strictly: what every reader of samples goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.text import half_characters

Turn = dict[str, str]
StoredPrompt = str | list[Turn]
"""A prompt as it was stored: text, or the messages of a conversation."""


@dataclass(frozen=True)
class Row:
    """All responses to one prompt at one sampling setting."""

    id: str
    prompt: StoredPrompt
    sampling: SamplingPoint
    outputs: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    stopped_by_text: tuple[bool, ...]
    """Whether a response ended before a stop text, so without an end token."""
    prompt_token_ids: tuple[int, ...] | None
    """What the model read; None for rows that do not say."""
    token_ids: tuple[tuple[int, ...], ...] | None
    """What it sampled, an end token included; None for rows that do not say."""
    where: str
    """File and line, for messages."""
    broken: tuple[tuple[str, ...], ...] | None = None
    """Constraints that each response breaks; None for samples without constraints."""


def parse_row(plain: Mapping[str, Any], where: str) -> tuple[Row, str]:
    """(row, model hash) of one line's object.

    Raises:
        UserError: a field is missing or not what it has to be; with file and line.
    """
    for half in half_characters(plain):
        raise UserError(f"{where}: {half} holds half of a surrogate pair; sample the row again")
    outputs = _list(plain, "outputs", where)
    if not outputs or not all(isinstance(text, str) for text in outputs):
        raise UserError(f"{where}: outputs is not a list of texts; sample the row again")
    reasons = _list(plain, "finish_reasons", where)
    if len(reasons) != len(outputs) or not all(isinstance(reason, str) for reason in reasons):
        raise UserError(
            f"{where}: {len(reasons)} finish_reasons for {len(outputs)} outputs; sample the row "
            "again"
        )
    stops = plain.get("stop_reasons", [None] * len(outputs))
    if not isinstance(stops, list) or len(stops) != len(outputs):
        raise UserError(f"{where}: stop_reasons are not one for each output; sample the row again")
    ids = plain.get("token_ids")
    if ids is not None and (
        not isinstance(ids, list) or len(ids) != len(outputs) or not all(map(_token_ids, ids))
    ):
        raise UserError(
            f"{where}: token_ids are not a list of ids for each output; sample it again"
        )
    prompt_ids = plain.get("prompt_token_ids")
    if prompt_ids is not None and not _token_ids(prompt_ids):
        raise UserError(f"{where}: prompt_token_ids is not a list of ids; sample the row again")
    row = Row(
        id=_text(plain, "id", where),
        prompt=_prompt(plain.get("prompt"), where),
        sampling=parse_sampling(plain.get("sampling"), where),
        outputs=tuple(map(whole_characters, outputs)),
        finish_reasons=tuple(reasons),
        stopped_by_text=tuple(isinstance(reason, str) for reason in stops),
        prompt_token_ids=None if prompt_ids is None else tuple(prompt_ids),
        token_ids=None if ids is None else tuple(map(tuple, ids)),
        where=where,
        broken=_broken(plain, len(outputs), where),
    )
    return row, _text(plain, "model_hash", where)


def _broken(plain: Mapping[str, Any], count: int, where: str) -> tuple[tuple[str, ...], ...] | None:
    if "broken" not in plain and "constraints_met" not in plain:
        return None
    broken, met = plain.get("broken"), plain.get("constraints_met")
    if (
        not isinstance(broken, list)
        or len(broken) != count
        or not all(isinstance(names, list) and all(map(_is_name, names)) for names in broken)
        or met != [not names for names in broken]
    ):
        raise UserError(
            f"{where}: broken and constraints_met do not say the same of each output; sample it "
            "again"
        )
    return tuple(map(tuple, broken))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def whole_characters(text: str) -> str:
    """A text in which half of a surrogate pair, which some servers give, is a replacement sign."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


def _text(plain: Mapping[str, Any], field: str, where: str) -> str:
    value = plain.get(field)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {field} is missing or not a text; sample the row again")
    return value


def _list(plain: Mapping[str, Any], field: str, where: str) -> list[Any]:
    value = plain.get(field)
    if not isinstance(value, list):
        raise UserError(f"{where}: {field} is missing or not a list; sample the row again")
    return value


def _prompt(value: Any, where: str) -> StoredPrompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(map(_is_turn, value)):
        return value
    raise UserError(f"{where}: prompt is neither text nor a list of messages; sample the row again")


def _is_turn(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"role", "content"} <= set(value)
        and all(isinstance(part, str) for part in value.values())
    )


def parse_sampling(value: Any, where: str) -> SamplingPoint:
    """The sampling point of a row: all four numbers, and nothing else.

    Raises:
        UserError: naming the field.
    """
    expected = {"temperature": float, "top_p": float, "min_p": float, "top_k": int}
    if not isinstance(value, dict) or set(value) != set(expected):
        raise UserError(
            f"{where}: sampling does not hold exactly {', '.join(expected)}; sample it again"
        )
    for name, kind in expected.items():
        given = value[name]
        if type(given) not in ((int,) if kind is int else (int, float)):
            raise UserError(f"{where}: sampling.{name} is {given!r}, not a number; sample it again")
    return SamplingPoint(
        temperature=float(value["temperature"]),
        top_p=float(value["top_p"]),
        min_p=float(value["min_p"]),
        top_k=int(value["top_k"]),
    )
