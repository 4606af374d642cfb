"""Conversations and texts to token ids, applied once.

The template decides everything (Llama 3, Gemma, ChatML, ...); nothing here knows its name. What
must hold for training to reach the model that generates is checked instead:

* the prompt with the assistant's header is an exact token prefix of the complete conversation;
* there is exactly one BOS at the start, if the template writes one or the tokenizer adds one to
  plain text, and none in duplicate;
* the last token of a response is the one that generation stops on; what a template writes after it
  (a new line after <|im_end|>) is cut off, so that no label follows the end (a released GDPO put
  its preference bonus on such a new line).
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Collection
from functools import cached_property
from typing import Any

from nemo_gdpo.data.checks import BadPairError, response_text
from nemo_gdpo.data.types import Messages, RawPair
from nemo_gdpo.errors import UserError

_CLOCK = "strftime_now"
"""What a template calls to write the date; transformers provides it."""
_CALL = re.compile(rf"{_CLOCK}\s*\(")
_CALL_WITH_FORMAT = re.compile(rf"{_CLOCK}\s*\(\s*(['\"])((?:(?!\1)[^\\])*)\1\s*\)")
_PROBE: Messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


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
        self.chat_template = (
            _default_template(tokenizer) if chat_template is None else chat_template
        )
        self.date = None if not self.has_clock else date or datetime.date.today().isoformat()
        """Day that the template writes; None for one without a clock."""
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
        return self.chat_template is not None and _CLOCK in self.chat_template

    # --- end and padding tokens -------------------------------------------------------------

    @cached_property
    def chat_end_token_id(self) -> int:
        """The token that ends the assistant's turn in this template.

        Raises:
            UserError: no template, no such token, or a token that generation does not stop on.
        """
        prompt_ids, whole_ids = self.encode_prompt(_PROBE[:-1]), self._conversation_ids(_PROBE)
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

    def _with_one_bos(self, ids: list[int], what: str) -> tuple[int, ...]:
        bos = self.tokenizer.bos_token_id
        if self.added_bos_id is not None and ids[:1] != [self.added_bos_id]:
            ids = [self.added_bos_id, *ids]
        if bos is not None and ids[:2] == [bos, bos]:
            raise UserError(
                f"{what}: it begins with two BOS tokens {self.tokenizer.bos_token!r}; "
                "remove the one in the template or in the text"
            )
        return tuple(ids)

    # --- encoding ---------------------------------------------------------------------------

    def encode_prompt(self, prompt: str | Messages) -> tuple[int, ...]:
        """Prompt ids with BOS; messages get the assistant's header. Generation takes these."""
        if isinstance(prompt, str):
            return self._with_one_bos(self._ids(prompt), "prompt")
        text = self._render(prompt, add_generation_prompt=True)
        return self._with_one_bos(self._ids(text), "chat template")

    def encode_pair(
        self, pair: RawPair
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(prompt, chosen, rejected) ids; both responses end in the end token.

        Raises:
            BadPairError: the text holds a special token, or no text is left, or none that differs.
            UserError: the template does not do what the module's docstring demands.
        """
        where = f"{pair.where}, pair {pair.id!r}" if pair.where else f"pair {pair.id!r}"
        self._refuse_special_tokens(pair, where)
        try:
            prompt_ids = self.encode_prompt(pair.prompt)
            responses = [
                self._response(pair, prompt_ids, response, where)
                for response in (pair.chosen, pair.rejected)
            ]
        except BadPairError:
            raise
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not prompt_ids:
            raise BadPairError(where, "empty prompt", "no token, and the tokenizer adds no BOS")
        if any(len(ids) < 2 for ids in responses):
            raise BadPairError(where, "empty response", "nothing is left of it after the template")
        if responses[0] == responses[1]:
            raise BadPairError(
                where, "identical chosen and rejected", "the same tokens after the template"
            )
        return prompt_ids, responses[0], responses[1]

    def _response(
        self, pair: RawPair, prompt_ids: tuple[int, ...], response: str | Messages, where: str
    ) -> tuple[int, ...]:
        if isinstance(response, str):
            end = self.text_end_token_id
            ids = self._ids(response)
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

    def _conversation_ids(self, conversation: Messages) -> tuple[int, ...]:
        text = self._render(conversation, add_generation_prompt=False)
        return self._with_one_bos(self._ids(text), "chat template")

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
        try:
            text = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self._clock() + self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(turn["role"] for turn in conversation)
            raise UserError(
                f"chat template: it refuses the roles {roles} ({error}); "
                "change the template, or the conversation (a system text can open the first user "
                "turn)"
            ) from None
        return str(text)

    def _clock(self) -> str:
        """A clock that stands still, to be put before the template, in the template's own language.

        transformers passes no functions on, so each format that the template asks for is written
        out. The line ends in a new line, which Jinja drops after a block.

        Raises:
            UserError: the template works its formats out.
        """
        if self.date is None:
            return ""
        formats = {match[2] for match in _CALL_WITH_FORMAT.finditer(self.chat_template or "")}
        if len(_CALL.findall(self.chat_template or "")) != len(
            _CALL_WITH_FORMAT.findall(self.chat_template or "")
        ):
            raise UserError(
                f"chat template: it calls {_CLOCK} with a format that is not written out, so its "
                "date cannot be kept; write the format, or the date, into the template"
            )
        day = datetime.datetime.fromisoformat(self.date)
        known = json.dumps({asked: day.strftime(asked) for asked in sorted(formats)})
        return f"{{% macro {_CLOCK}(format) %}}{{{{ {known}[format] }}}}{{% endmacro %}}\n"

    def _refuse_special_tokens(self, pair: RawPair, where: str) -> None:
        """Text that spells a special token would be read as one: a forged turn, an early end."""
        parts: list[tuple[str, str]] = []
        if isinstance(pair.prompt, str):
            # A text prompt may carry its own rendered template; only its responses are checked.
            end = self.tokenizer.eos_token or ""
            for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                parts.append((name, response_text(response).removesuffix(end)))
        else:
            parts = [("prompt", turn["content"]) for turn in pair.prompt]
            parts += [
                ("chosen", response_text(pair.chosen)),
                ("rejected", response_text(pair.rejected)),
            ]
        for name, text in parts:
            for token in self.special_tokens:
                if token in text:
                    raise BadPairError(
                        where, "special token in the text", f"{name} holds {token!r}"
                    )


def _default_template(tokenizer: Any) -> str | None:
    """The tokenizer's template; of several named ones, the one called default."""
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return None if template is None else str(template)
    if "default" not in template:
        names = ", ".join(sorted(template))
        raise UserError(
            f"tokenizer: its chat templates are {names}, none is default; set data.chat_template"
        )
    return str(template["default"])
