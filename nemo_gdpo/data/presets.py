"""Named presets: public preference data sets in the columns they are published with."""

from __future__ import annotations

import re
from typing import Any

from nemo_gdpo.data.checks import explicit_id, field, rest, score, text_field
from nemo_gdpo.data.conversation import split_prompt
from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.types import Messages, RawPair, Row
from nemo_gdpo.errors import UserError

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant", "human": "user", "assistant": "assistant"}
_TLDR = "TL;DR:"


def looks_like_hh(row: Row) -> bool:
    # The first row may lack one of them.
    given = row.data.get("chosen", row.data.get("rejected"))
    if isinstance(given, dict):
        return set(given) == {"role", "text"}
    return isinstance(given, str) and "prompt" not in row.data and given.startswith("\n\nHuman:")


def from_anthropic_hh(row: Row) -> RawPair:
    """Anthropic HH: two complete transcripts that differ in the last assistant turn.

    Also reads the processed variant with `context`, `chosen` and `rejected` of `{role, text}`.
    """
    chosen, rejected = field(row, "chosen"), field(row, "rejected")
    if isinstance(chosen, dict):
        context = field(row, "context")
        if not isinstance(context, list) or not context:
            raise UserError(
                f"{row.where}: context must be a list of turns; give role and text of each"
            )
        prompt = [_hh_turn(turn, row, "context") for turn in context]
        chosen = [_hh_turn(chosen, row, "chosen")]
        rejected = [_hh_turn(rejected, row, "rejected")]
    else:
        whole_chosen = parse_transcript(text_field(row, "chosen"), row, "chosen")
        whole_rejected = parse_transcript(text_field(row, "rejected"), row, "rejected")
        prompt, chosen, rejected = whole_chosen[:-1], whole_chosen[-1:], whole_rejected[-1:]
        if prompt != whole_rejected[:-1]:
            raise BadPairError(row.where, "the transcripts differ before the last turn")
    if any(turn[0]["role"] != "assistant" for turn in (chosen, rejected)) or not prompt:
        raise BadPairError(row.where, "the transcript does not end with an assistant turn")
    if prompt[-1]["role"] != "user":
        raise BadPairError(row.where, "the response does not answer a human turn")
    meta = rest(row, ("context", "chosen", "rejected"))
    return RawPair(explicit_id(row), prompt, chosen, rejected, None, None, meta, row.where)


def _hh_turn(turn: Any, row: Row, name: str) -> dict[str, str]:
    role = turn.get("role") if isinstance(turn, dict) else None
    text = turn.get("text") if isinstance(turn, dict) else None
    if role not in _HH_ROLES or not isinstance(text, str):
        raise UserError(
            f"{row.where}: a turn of {name} needs role (human or assistant) and text; correct it"
        )
    return {"role": _HH_ROLES[role], "content": text.strip()}


def parse_transcript(text: str, row: Row, name: str) -> Messages:
    """Split "\\n\\nHuman: ...\\n\\nAssistant: ..." into messages, outer space stripped."""
    parts = _HH_TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise UserError(
            f"{row.where}: {name} is not a transcript of '\\n\\nHuman:' and '\\n\\nAssistant:' "
            "turns; set data.format to the format the file has"
        )
    return [
        {"role": _HH_ROLES[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def from_ultrafeedback_binarized(row: Row) -> RawPair:
    """UltraFeedback binarized: prompt, complete conversations, `score_chosen`, `score_rejected`."""
    used = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "messages")
    prompt, chosen, rejected = split_prompt(
        row, row.data.get("prompt"), field(row, "chosen"), field(row, "rejected"), read=used
    )
    scores = score(row, "score_chosen"), score(row, "score_rejected")
    return RawPair(explicit_id(row), prompt, chosen, rejected, *scores, rest(row, used), row.where)


def from_tldr_comparisons(row: Row) -> RawPair:
    """TL;DR comparisons: a post and two summaries, plain text.

    The published summaries repeat the marker "TL;DR:" at their beginning. It belongs to the prompt
    (nobody wants to learn it, and generation is prompted with it), so it moves there; the summary
    keeps one space before its first word.
    """
    prompt = text_field(row, "prompt").rstrip()
    chosen, rejected = (_summary(text_field(row, name)) for name in ("chosen", "rejected"))
    if not prompt:
        raise BadPairError(row.where, "empty prompt")
    if not prompt.endswith(_TLDR):
        prompt = f"{prompt}\n{_TLDR}"
    meta = rest(row, ("prompt", "chosen", "rejected"))
    return RawPair(explicit_id(row), prompt, chosen, rejected, None, None, meta, row.where)


def _summary(text: str) -> str:
    summary = text.strip().removeprefix(_TLDR).strip()
    return f" {summary}" if summary else ""


def looks_like_tldr_json(row: Row) -> bool:
    """ODPO's TL;DR file: one object of posts, each with responses and rewards."""
    return bool(row.data) and all(
        isinstance(value, dict) and {"responses", "rewards"} <= set(value)
        for value in row.data.values()
    )
