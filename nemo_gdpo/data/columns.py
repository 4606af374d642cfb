"""Prompts that stand elsewhere than in the prompt: in columns nobody reads, or in the responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.types import Messages, RawPair
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.text import shown

SYSTEM = frozenset({"system", "system_prompt", "system_message", "sys_prompt", "systemprompt"})
TOOLS = frozenset({"tools", "functions", "documents", "chat_template_kwargs"})
MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
PROMPTS = frozenset(
    {
        "prompt", "prompts", "question", "questions", "query", "instruction", "instructions",
        "input", "inputs", "context", "history", "user_prompt",
    }
)  # fmt: skip
"""Names under which data sets have (a part of) the prompt."""
_WITHOUT_A_PROMPT = PROMPTS | {
    "messages", "conversation", "conversations", "dialogue", "dialog", "user", "problem", "task",
    "post",
}  # fmt: skip
"""Names that are looked at where there is no prompt."""
_EMPTY = ("", "[]", "{}", "null", "none")


def _name(column: str) -> str:
    return column.strip().lower().replace("-", "_").replace(" ", "_")


def _says_something(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in _EMPTY
    return value is not None and value is not False and value != [] and value != {}


def prompt_columns(columns: Mapping[str, Any]) -> list[str]:
    """Columns that may hold the prompt: by their name, or because they hold more than a word."""
    return [
        key
        for key, value in columns.items()
        if _says_something(value)
        and (
            _name(key) in _WITHOUT_A_PROMPT
            or (isinstance(value, str) and len(value.split()) > 1)
            or isinstance(value, list | dict)
        )
    ]


def refuse_unread_columns(pair: RawPair, where: str) -> None:
    """Refuse a column that would change the prompt, unless the prompt says the same already.

    Raises:
        UserError: there is one; it is named.
    """
    if not pair.meta:
        return
    prompt = "\n".join(_texts(pair.prompt))
    for key, value in pair.meta.items():
        name = _name(key)
        if name not in SYSTEM | TOOLS | MEDIA | PROMPTS or not _says_something(value):
            continue
        texts = list(_texts(value))
        if name not in TOOLS | MEDIA and texts and all(text.strip() in prompt for text in texts):
            continue
        raise UserError(f"{where}: column {key!r} {_remedy(name)}, or remove the column")


def _remedy(name: str) -> str:
    if name in MEDIA:
        return (
            "holds what the model would have to see or hear, and nothing reads it; give text only"
        )
    if name in TOOLS:
        return (
            "would change the prompt, and nothing reads it; write what it says into the prompt's "
            "messages"
        )
    if name in SYSTEM:
        return (
            "would change the prompt, and nothing reads it; make it the first message of prompt, "
            "with the role system"
        )
    return (
        "is named like a part of the prompt, which does not hold its text, and nothing reads it; "
        "put it into prompt"
    )


def _texts(value: Any) -> Iterator[str]:
    """The texts of a prompt: itself, or the contents of its messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key in ("content", "text", "value"):
            if isinstance(value.get(key), str):
                yield value[key]
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


# -- responses that begin with the prompt ----------------------------------------------------------


def refuse_repeated_prompt(pair: RawPair, where: str) -> None:
    """Refuse responses that both begin with the prompt: the model would be taught to repeat it.

    One response may quote the question. Two that share it are what a file has whose responses are
    whole conversations.

    Raises:
        BadPairError: both have it.
    """
    question = pair.prompt if isinstance(pair.prompt, str) else _last_question(pair.prompt)
    question = question.strip()
    chosen, rejected = (_response(r).lstrip() for r in (pair.chosen, pair.rejected))
    begins = _begins(chosen, question) and _begins(rejected, question)
    if begins and not isinstance(pair.prompt, str):
        # "Hello" is answered by "Hello!".
        begins = len(question.split()) > 2 or question.endswith(("?", ":"))
    if not begins and len(question) >= 16 and question in chosen and question in rejected:
        end = chosen.index(question) + len(question)
        begins = chosen[:end] == rejected[:end]
    if begins:
        raise BadPairError(
            where,
            "the responses contain the prompt",
            "chosen and rejected both begin with it",
            remedy="cut it off them, or leave the prompt column out",
        )


def _begins(response: str, question: str) -> bool:
    """Whether a response begins with all words of a question."""
    if not response.startswith(question):
        return False
    rest = response[len(question) :]
    return not (rest and rest[0].isalnum() and question[-1].isalnum())


def _last_question(turns: Messages) -> str:
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "\0")


def _response(response: str | Messages) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


def no_prompt(columns: Mapping[str, Any]) -> str:
    """What to do about a row without a prompt, by the columns that it has."""
    found = prompt_columns(columns)
    if not found:
        return "add a prompt"
    may = "may hold it" if len(found) == 1 else "may hold it between them"
    return f"{shown(found)} {may}: name the column prompt"
