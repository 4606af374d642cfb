"""The verdict in a judge's answer: in brackets, alone, or as JSON, and never in its thoughts."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

Verdict = Literal["A", "B", "tie"]

_MARK = re.compile(r"\[\[\s*(A|B|C|TIE)\s*\]\]", re.IGNORECASE)
_BARE = re.compile(r"\W*(A|B|TIE)\W*", re.IGNORECASE)
_NAMED = re.compile(r"\W*(?:(?:response|assistant|answer)[ _])?(A|B|C|TIE)\W*", re.IGNORECASE)
_VERDICTS: dict[str, Verdict] = {"A": "A", "B": "B", "TIE": "tie", "C": "tie"}
_KEYS = frozenset(
    {"answer", "better", "choice", "decision", "judgement", "judgment", "preference", "preferred",
     "verdict", "winner"}
)  # fmt: skip
"""Fields of a JSON answer that hold a verdict."""
_THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)"
_OPENED = rf"<{_THOUGHT}>|\[THINK\]|◁think▷"
_CLOSED = rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷"
_THOUGHTS = re.compile(rf"(?:{_OPENED}).*?(?:{_CLOSED}|\Z)", re.IGNORECASE | re.DOTALL)
_BEGUN_BEFORE = re.compile(rf"\A.*(?:{_CLOSED})", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)


def without_thoughts(answer: str) -> str:
    """What a judge says, without what it thinks before.

    Thoughts that do not end leave nothing. Where only their end is written (their beginning belongs
    to the template's header), everything up to it goes.
    """
    return _BEGUN_BEFORE.sub("", _THOUGHTS.sub("", answer)).strip()


def parse_verdict(answer: str) -> Verdict | None:
    """A verdict, or None if the answer holds none, or several that differ.

    [[A]], [[B]], [[TIE]] (and [[C]], which other judges' prompts use for a tie) anywhere; or the
    letter alone as the whole answer; or JSON with one of them as `verdict`, `winner` and the like.
    """
    said = without_thoughts(answer)
    marks = {_VERDICTS[mark.upper()] for mark in _MARK.findall(said)}
    if marks:
        return marks.pop() if len(marks) == 1 else None
    bare = _BARE.fullmatch(said)
    return _VERDICTS[bare[1].upper()] if bare else _verdict_of_json(said)


def _verdict_of_json(said: str) -> Verdict | None:
    fenced = _FENCE.findall(said)
    for text in [said, *fenced[-1:], said[said.rfind("{") :]]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return _verdict_of_fields(found)
    return None


def _verdict_of_fields(fields: dict[str, Any]) -> Verdict | None:
    named = [value for key, value in fields.items() if key.strip().lower() in _KEYS]
    matches = [_NAMED.fullmatch(value) for value in named if isinstance(value, str)]
    verdicts = {_VERDICTS[match[1].upper()] for match in matches if match is not None}
    return verdicts.pop() if len(verdicts) == 1 and None not in matches else None
