"""Conversations and texts to token ids, applied once.

The template decides everything (Llama 3, Gemma, ChatML, ...); nothing here knows its name. What
must hold for training to reach the model that generates is checked instead:

* the prompt with the assistant's header is an exact token prefix of the complete conversation;
* there is exactly one BOS at the start, if the template writes one or the tokenizer adds one to
  plain text, and none in duplicate or behind a blank line or a byte order mark;
* the text of every message of the user and of the system is in the prompt;
* the last token of a response is the one that generation stops on; what a template writes after it
  (a new line after <|im_end|>) is cut off, so that no label follows the end (a released GDPO put
  its preference bonus on such a new line).

Text pairs: the tokens of prompt and response are those of the joined text. A tokenizer that puts a
space before whatever it is given (SentencePiece's) would otherwise teach `Answer:\\n fine`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_gdpo.data.checks import response_text
from nemo_gdpo.data.clock import has_clock, stopped_clock, today
from nemo_gdpo.data.faults import BadPairError, EveryRowError
from nemo_gdpo.data.types import Messages, RawPair
from nemo_gdpo.errors import UserError

_PROBE: Messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

_UNSEEN = " \t\r\n\f\v\ufeff\u200b"
"""What an editor leaves at the beginning of a file without showing it."""


class TemplateFaultError(EveryRowError):
    """Template or tokenizer cannot be used with any pair."""


class _RefusedError(UserError):
    """The template refuses one conversation; `reason` is the name in the counts."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class PairEncoder:
    """Turns raw pairs into token ids with one tokenizer and one template.

    Args:
        tokenizer: a transformers tokenizer.
        stop_token_ids: the ids generation stops on (`generation_config.eos_token_id`); None takes
            the template's first special token after the answer, or the tokenizer's EOS for text.
        chat_template: a Jinja template that replaces the tokenizer's own.
        date: ISO date that a template with a clock writes; None is today, of all that it renders.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_token_ids: Collection[int] | None = None,
        chat_template: str | None = None,
        date: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = default_template(tokenizer) if chat_template is None else chat_template
        self.date = date or today() if self.has_clock else None
        """Day that the template writes; None for one without a clock."""
        self._is_replaced = chat_template is not None
        self.stop_token_ids = None if stop_token_ids is None else frozenset(stop_token_ids)
        if self.stop_token_ids is not None and not self.stop_token_ids:
            raise UserError(
                "stop_token_ids is empty; give the end token ids of generation_config.json"
            )
        added = {
            item.content: index
            for index, item in tokenizer.added_tokens_decoder.items()
            if item.special
        }
        named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.special_tokens: dict[str, int] = {**named, **added}
        """Text -> id of every token that text must not smuggle in."""

    @property
    def has_clock(self) -> bool:
        """Whether what the template writes depends on the day."""
        return has_clock(self.chat_template)

    def on(self, date: str) -> PairEncoder:
        """The same encoder on another day, if its template has a clock."""
        other = copy.copy(self)
        other.date = date if self.has_clock else None
        return other

    # --- end and padding tokens -------------------------------------------------------------

    @cached_property
    def chat_end_token_id(self) -> int:
        """The token that ends the assistant's turn in this template.

        Raises:
            UserError: no template, no such token, or a token that generation does not stop on.
        """
        try:
            prompt_ids, whole_ids = self.encode_prompt(_PROBE[:-1]), self._conversation_ids(_PROBE)
        except _RefusedError as error:  # no pair's fault
            raise UserError(str(error)) from None
        if whole_ids[: len(prompt_ids)] != prompt_ids:
            raise UserError(
                "chat template: with this tokenizer the prompt and the assistant's header are not "
                "a token prefix of the answered conversation, so the answer cannot be cut out; use "
                "the template and the tokenizer that belong to the model"
            )
        tail = whole_ids[len(prompt_ids) :]
        specials = set(self.special_tokens.values())
        for token in tail:
            if token in (specials if self.stop_token_ids is None else self.stop_token_ids):
                return int(token)
        written = self.tokenizer.convert_ids_to_tokens(tail)
        if self.stop_token_ids is None:
            raise UserError(
                "chat template: no end token follows the assistant's answer (it writes "
                f"{written}); choose a template that ends the turn with a special token"
            )
        stops = self.tokenizer.convert_ids_to_tokens(sorted(self.stop_token_ids))
        raise UserError(
            f"chat template: the assistant's turn ({written}) holds none of the tokens that "
            f"generation stops on ({stops}); use the model's own template or correct "
            "generation_config.json"
        )

    @cached_property
    def text_end_token_id(self) -> int:
        """The end token of plain text: the tokenizer's EOS, which generation must stop on."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise UserError(
                "tokenizer: it has no EOS token, so text responses cannot end; set eos_token"
            )
        if self.stop_token_ids is not None and eos not in self.stop_token_ids:
            raise UserError(
                f"tokenizer: EOS {self.tokenizer.eos_token!r} is not a token that generation stops "
                f"on ({sorted(self.stop_token_ids)}); give the pairs as messages, or correct "
                "generation_config.json"
            )
        return int(eos)

    def end_token_id(self, pair: RawPair) -> int:
        return self.text_end_token_id if isinstance(pair.prompt, str) else self.chat_end_token_id

    @cached_property
    def pad_token_id(self) -> int:
        """The padding id; without a pad token any id does, because masks never let it through."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    # --- BOS --------------------------------------------------------------------------------

    @cached_property
    def added_bos_id(self) -> int | None:
        """The BOS that the tokenizer puts before plain text: the model expects it."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return int(bos) if bos is not None and ids[:1] == [bos] else None

    def _with_one_bos(self, text: str, ids: list[int], what: str) -> tuple[int, ...]:
        bos, name = self.tokenizer.bos_token_id, self.tokenizer.bos_token
        shown = text.lstrip(_UNSEEN)
        if bos is not None and ids[:1] != [bos] and shown.startswith(name):
            raise UserError(
                f"{what}: {text[: len(text) - len(shown)]!r} stands before the BOS token {name!r}; "
                "remove it (a blank first line or a byte order mark)"
            )
        if self.added_bos_id is not None and ids[:1] != [self.added_bos_id]:
            ids = [self.added_bos_id, *ids]
        if bos is not None and ids[:2] == [bos, bos]:
            raise UserError(
                f"{what}: it begins with two BOS tokens {name!r}; "
                "remove the one in the template or in the text"
            )
        return tuple(ids)

    # --- encoding ---------------------------------------------------------------------------

    def encode_prompt(self, prompt: str | Messages) -> tuple[int, ...]:
        """Prompt ids with BOS; messages get the assistant's header. Generation takes these.

        Raises:
            UserError: the template refuses the conversation, leaves some of it out, or does not do
                what the module's docstring demands.
        """
        if isinstance(prompt, str):
            return self._with_one_bos(prompt, self._ids(prompt), "prompt")
        text = self._render(prompt, add_generation_prompt=True)
        self._check_rendered(prompt, text)
        return self._with_one_bos(text, self._ids(text), "chat template")

    def _check_rendered(self, prompt: Messages, text: str) -> None:
        """Refuse what a template writes before the prompt, and what it leaves out of it."""
        shown = text.lstrip(_UNSEEN)
        before = text[: len(text) - len(shown)]
        if "\ufeff" in before or (
            before and self._is_replaced and shown.startswith(tuple(self.special_tokens))
        ):
            raise UserError(
                f"chat template: it writes {before!r} before the first token; remove the blank "
                "first line or the byte order mark of its file"
            )
        for index, turn in enumerate(prompt):
            # An assistant's earlier thoughts are left out on purpose, a tool's answer is escaped.
            if turn["role"] in ("user", "system") and turn["content"].strip() not in text:
                raise _RefusedError(
                    f"chat template: it leaves out prompt[{index}], of the {turn['role']}; change "
                    "the template, or the conversation (a system text can open the first user "
                    "turn)",
                    "the template leaves a message out",
                )

    def encode_pair(
        self, pair: RawPair
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(prompt, chosen, rejected) ids; both responses end in the end token.

        Raises:
            BadPairError: the text holds a special token, or no text is left, or none that differs.
            UserError: the template does not do what the module's docstring demands.
        """
        prompt_ids, (chosen, rejected) = self._encoded(
            pair, {"chosen": pair.chosen, "rejected": pair.rejected}
        )
        if chosen == rejected and pair.is_ordered:
            raise BadPairError(
                pair.place, "identical chosen and rejected", "the same tokens after the template"
            )
        return prompt_ids, chosen, rejected

    def encode_row(self, pair: RawPair) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(prompt, response) ids of an unpaired row; see `encode_pair`."""
        prompt_ids, (response,) = self._encoded(pair, {"response": pair.chosen})
        return prompt_ids, response

    def _encoded(
        self, pair: RawPair, said: dict[str, str | Messages]
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """Ids of the prompt and of responses, which have names for messages."""
        where = pair.place
        self._refuse_special_tokens(pair.prompt, said, where)
        prompt_ids = self._pair_prompt(pair, where)
        try:
            responses = [
                self._response(pair, prompt_ids, response, where) for response in said.values()
            ]
        except BadPairError:
            raise
        except _RefusedError as error:
            raise BadPairError(where, error.reason, said=str(error), remedy="") from None
        except UserError as error:
            raise TemplateFaultError(f"{where}: {error}") from None
        if not prompt_ids:
            raise BadPairError(where, "empty prompt", "no token, and the tokenizer adds no BOS")
        if any(len(ids) < 2 for ids in responses):
            raise BadPairError(where, "empty response", "nothing is left of it after the template")
        return prompt_ids, responses

    def _pair_prompt(self, pair: RawPair, where: str) -> tuple[int, ...]:
        try:
            return self.encode_prompt(pair.prompt)
        except _RefusedError as error:
            raise BadPairError(where, error.reason, said=str(error), remedy="") from None
        except UserError as error:
            if isinstance(pair.prompt, str):
                raise BadPairError(
                    where, "BOS tokens in the prompt", said=str(error), remedy=""
                ) from None
            raise TemplateFaultError(f"{where}: {error}") from None

    def _response(
        self, pair: RawPair, prompt_ids: tuple[int, ...], response: str | Messages, where: str
    ) -> tuple[int, ...]:
        if isinstance(response, str):
            assert isinstance(pair.prompt, str)
            end = self.text_end_token_id
            ids = self._text_response(pair.prompt, prompt_ids, response, where)
            # Files in NeMo-Aligner's manner may write the end token out.
            return (*(ids[:-1] if ids[-1:] == [end] else ids), end)
        assert not isinstance(pair.prompt, str)
        end = self.chat_end_token_id
        ids = list(self._conversation_ids([*pair.prompt, *response]))
        if tuple(ids[: len(prompt_ids)]) != prompt_ids:
            raise BadPairError(
                where,
                "the prompt is not a token prefix of the conversation",
                "the response's first characters merge with the assistant's header (strip leading "
                "white space), or the template renders earlier turns differently once it is "
                "answered",
            )
        tail = ids[len(prompt_ids) :]
        if end not in tail:
            raise BadPairError(where, "the template does not end this response with its end token")
        stop = tail.index(end)
        residue = self.tokenizer.decode(tail[stop + 1 :], skip_special_tokens=True)
        if residue.strip():
            raise UserError(
                f"chat template: it writes {residue!r} after the end token; use another template"
            )
        return tuple(tail[: stop + 1])

    @cached_property
    def _adds_a_space(self) -> bool:
        """Whether texts that are tokenised apart are others than when they are joined."""
        probes = ("a\n", "b"), ("a", " b")
        return any(self._ids(a) + self._ids(b) != self._ids(a + b) for a, b in probes)

    def _text_response(
        self, prompt: str, prompt_ids: tuple[int, ...], response: str, where: str
    ) -> list[int]:
        """The tokens of a response as they follow the prompt."""
        if not self._adds_a_space:
            return self._ids(response)
        whole = prompt + response
        ids = self._with_one_bos(whole, self._ids(whole), "prompt")
        if ids[: len(prompt_ids)] != prompt_ids:
            raise BadPairError(
                where,
                "prompt and response share a token",
                "this tokenizer joins the end of the prompt with the beginning of a response",
                remedy="move white space at the prompt's end to the beginning of the responses",
            )
        return list(ids[len(prompt_ids) :])

    def _conversation_ids(self, conversation: Messages) -> tuple[int, ...]:
        text = self._render(conversation, add_generation_prompt=False)
        return self._with_one_bos(text, self._ids(text), "chat template")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _render(self, conversation: Messages, *, add_generation_prompt: bool) -> str:
        import jinja2

        if self.chat_template is None:
            raise UserError(
                "tokenizer: it has no chat template and the pairs are messages; set "
                "data.chat_template, use the instruction-tuned model's tokenizer, or give prompt "
                "and responses as text"
            )
        template = self.chat_template
        if self.date is not None:
            template = stopped_clock(template, self.date)
        try:
            text = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"chat template: line {error.lineno} is not Jinja ({_one_line(error)}); correct it"
            ) from None
        except Exception as error:  # noqa: BLE001 - a template is a program, and can fail in any way
            roles = ", ".join(turn["role"] for turn in conversation)
            if type(error) is jinja2.TemplateError:  # what `raise_exception` of a template raises
                raise _RefusedError(
                    f"chat template: it refuses the roles {roles} ({_one_line(error)}); "
                    "change the template, or the conversation (a system text can open the first "
                    "user turn)",
                    "the template refuses the conversation",
                ) from None
            raise UserError(
                f"chat template: it fails with {type(error).__name__} ({_one_line(error)}) on a "
                f"conversation of {roles}; correct the template, or use the model's own"
            ) from None
        return str(text)

    def _refuse_special_tokens(
        self, prompt: str | Messages, said: dict[str, str | Messages], where: str
    ) -> None:
        """Text that spells a special token would be read as one: a forged turn, an early end."""
        parts: list[tuple[str, str]] = []
        if isinstance(prompt, str):
            # A text prompt may carry its own rendered template; only its responses are checked.
            end = self.tokenizer.eos_token or ""
            for name, response in said.items():
                parts.append((name, response_text(response).removesuffix(end)))
        else:
            parts = [("prompt", turn["content"]) for turn in prompt]
            parts += [(name, response_text(response)) for name, response in said.items()]
        for name, text in parts:
            for token in self.special_tokens:
                if token in text:
                    raise BadPairError(
                        where, "special token in the text", f"{name} holds {token!r}"
                    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_template(path: str | None) -> str | None:
    """The Jinja file that `data.chat_template` names; None without one.

    Raises:
        UserError: it is missing, empty, or no text.
    """
    if path is None:
        return None
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"data.chat_template={path} does not exist; correct the path, or set it to null"
        )
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template={path} cannot be read ({_one_line(error)}); save it as UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"data.chat_template={path} is empty; write a template, or set it to null")
    return text


def default_template(tokenizer: Any) -> str | None:
    """The tokenizer's template; of several named ones, the one called default."""
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return None if template is None else str(template)
    if "default" not in template:
        names = ", ".join(sorted(template))
        raise UserError(
            f"tokenizer: its chat templates are {names}, none is default; name one so, "
            "or set data.chat_template"
        )
    return str(template["default"])
