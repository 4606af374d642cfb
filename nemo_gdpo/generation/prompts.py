"""The prompt file, and the tokens of its prompts: the same ones as in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_gdpo.data import PairEncoder
from nemo_gdpo.data.checks import check_prompt, explicit_id, messages
from nemo_gdpo.data.readers import read_rows
from nemo_gdpo.data.types import Messages, Row
from nemo_gdpo.errors import UserError

KEY = "data.prompts_path"
_ANSWERED: Messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_AFTER_ANSWER = 3
"""Last tokens of a conversation, of which one ends its turn: <|im_end|> and a new line."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


@dataclass(frozen=True)
class GivenPrompt:
    """A line of the prompt file."""

    id: str
    prompt: str | Messages
    where: str
    """File and line, for messages."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt, and those that end its answer."""

    given: GivenPrompt
    token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]


def read_prompts(path: Path, *, as_user: bool = False) -> list[GivenPrompt]:
    """The prompts in the order of the file. Fields beside id and prompt are for other programs.

    Args:
        path: of the file.
        as_user: a prompt that is text becomes a user's message.

    Raises:
        UserError: no file, no line, no text for `as_user`, a line that is not as it should be, or
            an id that occurs twice; with file and line.
    """
    if not path.is_file():
        raise UserError(f"{KEY}: {path} is not a file; correct the path")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{KEY}: {path} is not a {', '.join(SUFFIXES)} file; rename or rewrite it")
    empty = f"{KEY}: {path} is empty; write one prompt a line"
    if path.stat().st_size == 0:
        raise UserError(empty)
    found: dict[str, GivenPrompt] = {}
    texts = 0
    for row in read_rows(path):
        prompt = _prompt(row)
        texts += isinstance(prompt, str)
        if as_user and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        given = GivenPrompt(_id(row), prompt, row.where)
        if given.id in found:
            raise UserError(
                f"{given.where}: id {given.id!r} was already used at {found[given.id].where}; give "
                "every prompt its own id"
            )
        found[given.id] = given
    if not found:
        raise UserError(empty)
    if as_user and not texts:
        raise UserError(
            f"data.text_prompts: {path} holds no prompt that is text, so user would change nothing;"
            " leave it out"
        )
    return list(found.values())


def _id(row: Row) -> str:
    if row.data.get("id") is None:
        raise UserError(f"{row.where}: no value for 'id'; give every prompt one")
    return explicit_id(row)


def _prompt(row: Row) -> str | Messages:
    value = row.data.get("prompt")
    if value is None:
        raise UserError(f"{row.where}: no value for 'prompt'; write text or a list of messages")
    if isinstance(value, str):
        if not value.strip():
            raise UserError(f"{row.where}: the prompt is empty; write text, or remove the line")
        return value
    turns = messages(value, row.where, "prompt")
    check_prompt(turns, row.where)
    return turns


def _check_text(given: GivenPrompt, special_tokens: Iterable[str]) -> None:
    """Text in a message that spells a special token would be read as one: a forged turn.

    A text prompt may carry its own rendered template, as in training.
    """
    if isinstance(given.prompt, str):
        return
    for turn in given.prompt:
        for token in special_tokens:
            if token in turn["content"]:
                raise UserError(
                    f"{given.where}: a message holds {token!r}, which the tokenizer reads as a "
                    "special token; change the text, or give the whole prompt as text"
                )


@dataclass(frozen=True)
class Unusable:
    """A prompt that this model cannot be given; the others of a file can."""

    given: GivenPrompt
    reason: str
    """One line, with file and line."""


def encode_each(
    prompts: Sequence[GivenPrompt], encoder: PairEncoder
) -> tuple[list[EncodedPrompt], list[Unusable]]:
    """(token ids and end tokens of the prompts that can be used, the others).

    Raises:
        UserError: none can be used; the reason of the first.
    """
    encoded, unusable = [], []
    for given in prompts:
        try:
            encoded.append(encode_prompt(given, encoder))
        except UserError as error:
            unusable.append(Unusable(given, str(error)))
    if not encoded and unusable:
        raise UserError(unusable[0].reason)
    return encoded, unusable


def encode_prompts(prompts: Sequence[GivenPrompt], encoder: PairEncoder) -> list[EncodedPrompt]:
    """Token ids and end tokens of every prompt.

    Raises:
        UserError: see `encode_prompt`.
    """
    return [encode_prompt(given, encoder) for given in prompts]


def encode_prompt(given: GivenPrompt, encoder: PairEncoder) -> EncodedPrompt:
    """Token ids and end tokens of a prompt.

    Answers end in the tokens of generation_config.json (or config.json); where neither names one,
    in the one that training ends a response of this kind (text or messages) with.

    Raises:
        UserError: a prompt without a token, a special token in a message, or a template that
            refuses it or whose end token generation would run past.
    """
    _check_text(given, encoder.special_tokens)
    chat = not isinstance(given.prompt, str)
    try:
        token_ids = encoder.encode_prompt(given.prompt)
        end = _chat_end(encoder) if chat else None
        if encoder.stop_token_ids is not None:
            stops = tuple(sorted(encoder.stop_token_ids))
        else:
            stops = (encoder.text_end_token_id if end is None else end,)
    except UserError as error:
        raise UserError(f"{given.where}: {error}") from None
    if not token_ids:
        raise UserError(f"{given.where}: the prompt has no token; write some text")
    return EncodedPrompt(given, token_ids, stops)


def _chat_end(encoder: PairEncoder) -> int:
    """A token that ends the assistant's turn and that generation stops on.

    Training also asks that the prompt be a prefix of the answered conversation, which sampling does
    not need: a template that opens the assistant's thoughts in its header (DeepSeek's R1) can be
    sampled from.

    Raises:
        UserError: there is none.
    """
    try:
        return encoder.chat_end_token_id
    except UserError:
        if encoder.stop_token_ids is None or encoder.chat_template is None:
            raise
        tokenizer = encoder.tokenizer
        text = tokenizer.apply_chat_template(
            _ANSWERED, chat_template=encoder.chat_template, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ends = [token for token in ids[-_AFTER_ANSWER:] if token in encoder.stop_token_ids]
        if not ends:
            raise
        return int(ends[0])
