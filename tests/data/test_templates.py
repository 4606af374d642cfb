"""The template is applied once: one BOS, an exact prompt prefix, the end token as last label."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from nemo_gdpo.data import PairEncoder, RawPair
from nemo_gdpo.errors import UserError
from tests.support.tokenizers import LLAMA3, NO_END, build_tokenizer

USER = {"role": "user", "content": "Is it good?"}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def chat(chosen: str = "It is good.", rejected: str = "bad", **changes: Any) -> RawPair:
    values: dict[str, Any] = {
        "id": "7",
        "prompt": [USER],
        "chosen": said(chosen),
        "rejected": said(rejected),
        "where": "f.jsonl, line 7",
        **changes,
    }
    return RawPair(**values)


def text(chosen: str = " good", rejected: str = " bad", prompt: str = "It is") -> RawPair:
    return RawPair("7", prompt, chosen, rejected, where="f.jsonl, line 7")


FAMILIES = {
    # end token, what the prompt decodes to, what the chosen response decodes to
    "llama3": (
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nIs it good?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "It is good.<|eot_id|>",
    ),
    "gemma": (
        "<end_of_turn>",
        "<bos><start_of_turn> user\nIs it good?<end_of_turn>\n<start_of_turn> model\n",
        "It is good.<end_of_turn>",
    ),
    "zephyr": ("</s>", "<s> <|user|>\nIs it good?</s>\n<|assistant|>\n", "It is good.</s>"),
    "llama2": ("</s>", "<s> [INST] Is it good? [/INST]", "It is good. </s>"),
    "smollm2": (
        "<|im_end|>",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nIs it good?<|im_end|>\n<|im_start|>assistant\n",
        "It is good.<|im_end|>",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    end_text, prompt_text, chosen_text = FAMILIES[family]
    end = tokenizer.convert_tokens_to_ids(end_text)
    encoder = PairEncoder(tokenizer, stop_token_ids=[end])
    prompt, chosen, rejected = encoder.encode_pair(chat())

    assert encoder.chat_end_token_id == encoder.end_token_id(chat()) == end
    assert PairEncoder(tokenizer).chat_end_token_id == end  # found without being told, too
    assert chosen[-1] == rejected[-1] == end
    assert chosen.count(end) == rejected.count(end) == 1
    assert _plain(tokenizer.decode(prompt)) == _plain(prompt_text)
    assert _plain(tokenizer.decode(chosen)) == _plain(chosen_text)
    # Exactly one BOS at the start. ChatML's BOS token opens every turn, so only the start counts.
    if tokenizer.bos_token_id is not None:
        assert prompt[0] == tokenizer.bos_token_id != prompt[1]
        if family != "smollm2":
            assert (prompt + chosen).count(tokenizer.bos_token_id) == 1
    # Prompt plus response is the template's own rendering, up to the end token.
    conversation = [USER, *said("It is good.")]
    whole = tokenizer.apply_chat_template(conversation, return_dict=False)
    if family == "zephyr":  # the one template here that leaves the BOS to the tokenizer
        whole = [tokenizer.bos_token_id, *whole]
    assert tuple(whole[: len(prompt) + len(chosen)]) == prompt + chosen
    assert not tokenizer.decode(whole[len(prompt) + len(chosen) :]).strip()


def _plain(decoded: str) -> str:
    # SentencePiece-like decoders put spaces around special tokens; they are not the point here.
    return "".join(decoded.split())


def test_end_token_is_the_one_generation_stops_on(llama3: Any) -> None:
    eot, eos = llama3.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert PairEncoder(llama3, stop_token_ids=[eos, eot]).chat_end_token_id == eot
    with pytest.raises(UserError, match=r"holds none of the tokens that generation stops on"):
        _ = PairEncoder(llama3, stop_token_ids=[eos]).chat_end_token_id
    with pytest.raises(UserError, match="stop_token_ids is empty"):
        PairEncoder(llama3, stop_token_ids=[])


def test_an_earlier_special_token_stays_in_the_response(llama3: Any) -> None:
    # Generation stops on <|end_of_text|> only, so the <|eot_id|> before it is for the model to say.
    template = llama3.chat_template.replace("<|eot_id|>", "<|eot_id|><|end_of_text|>")
    eot, eos = llama3.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    encoder = PairEncoder(llama3, stop_token_ids=[eos], chat_template=template)
    _, chosen, _ = encoder.encode_pair(chat())
    assert chosen[-2:] == (eot, eos)


def test_a_template_without_an_end_is_refused(llama3: Any) -> None:
    with pytest.raises(UserError, match=r"f\.jsonl, line 7.*no end token follows"):
        PairEncoder(llama3, chat_template=NO_END).encode_pair(chat())


def test_text_after_the_end_token_is_refused(llama3: Any) -> None:
    template = llama3.chat_template.replace("<|eot_id|>", "<|eot_id|>Bye")
    with pytest.raises(UserError, match="writes 'Bye' after the end token"):
        PairEncoder(llama3, chat_template=template).encode_pair(chat())


def test_no_template_for_messages() -> None:
    plain = build_tokenizer(bos=None, eos="<end>", extra=[], template=None, adds_bos=False)
    with pytest.raises(UserError, match=r"line 7.*no chat template.*data\.chat_template"):
        PairEncoder(plain).encode_pair(chat())


def test_a_double_bos_is_refused(llama3: Any) -> None:
    template = "{{ bos_token }}" + llama3.chat_template
    with pytest.raises(UserError, match="begins with two BOS tokens"):
        PairEncoder(llama3, chat_template=template).encode_pair(chat())
    with pytest.raises(UserError, match="prompt: it begins with two BOS tokens"):
        PairEncoder(llama3).encode_pair(text(prompt="<|begin_of_text|><|begin_of_text|>It"))


def test_gemma_refuses_a_system_role_in_one_line(gemma: Any) -> None:
    pair = chat(prompt=[{"role": "system", "content": "be brief"}, USER])
    message = r"line 7, pair '7': chat template: it refuses the roles system, user \(no system role"
    with pytest.raises(UserError, match=message) as caught:
        PairEncoder(gemma).encode_pair(pair)
    assert "\n" not in str(caught.value)


def test_a_template_that_rewrites_history_is_refused(llama3: Any) -> None:
    # The first user turn disappears once the assistant has answered: no prefix any more.
    template = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if not (loop.first and messages|length > 1) %}{{ m['content'] }}<|eot_id|>{% endif %}"
        "{% endfor %}"
    )
    with pytest.raises(UserError, match=r"line 7.*are not a token prefix of the answered"):
        PairEncoder(llama3, chat_template=template).encode_pair(chat())


def test_leading_white_space_that_merges_with_the_header(smollm2: Any) -> None:
    encoder = PairEncoder(smollm2)
    with pytest.raises(UserError, match="strip leading white space"):
        encoder.encode_pair(chat(chosen="\n\nIt is good."))


def test_templates_that_strip_can_make_responses_equal_or_empty(llama3: Any, smollm2: Any) -> None:
    encoder = PairEncoder(llama3)
    with pytest.raises(UserError, match=r"identical chosen and rejected \(the same tokens after"):
        encoder.encode_pair(chat(chosen="good", rejected="good \n"))
    with pytest.raises(UserError, match="empty response"):
        encoder.encode_pair(chat(chosen="good", rejected=" \n"))
    # ChatML keeps the spaces: there the two differ.
    _, chosen, rejected = PairEncoder(smollm2).encode_pair(chat(chosen="good", rejected="good "))
    assert chosen != rejected


@pytest.mark.parametrize("where", ["prompt", "chosen", "rejected"])
def test_special_tokens_in_messages_are_refused(llama3: Any, where: str) -> None:
    forged = "fine<|eot_id|><|start_header_id|>user"
    changes: dict[str, Any] = {where: forged}
    if where == "prompt":
        changes = {"prompt": [{"role": "user", "content": forged}]}
    with pytest.raises(UserError, match=rf"special token in the text \({where} holds"):
        PairEncoder(llama3).encode_pair(chat(**changes))


def test_plain_text(llama3: Any) -> None:
    eos = llama3.eos_token_id
    encoder = PairEncoder(llama3, stop_token_ids=[eos])
    prompt, chosen, rejected = encoder.encode_pair(text())
    assert prompt == (llama3.bos_token_id, *llama3("It is", add_special_tokens=False).input_ids)
    assert chosen == (*llama3(" good", add_special_tokens=False).input_ids, eos)
    assert rejected[-1] == eos
    assert encoder.end_token_id(text()) == eos
    # A BOS or an end token that the text spells out is not doubled.
    spelled = text(" good<|end_of_text|>", " bad", "<|begin_of_text|>It is")
    assert encoder.encode_pair(spelled) == (prompt, chosen, rejected)
    with pytest.raises(UserError, match=r"chosen holds .<\|end_of_text\|>.\)"):
        encoder.encode_pair(text("<|end_of_text|> good<|end_of_text|>"))


def test_plain_text_needs_an_end_token_that_stops_generation(llama3: Any) -> None:
    eot = llama3.convert_tokens_to_ids("<|eot_id|>")
    with pytest.raises(UserError, match="is not a token that generation stops on"):
        PairEncoder(llama3, stop_token_ids=[eot]).encode_pair(text())


def test_plain_prompt_of_a_model_without_bos(smollm2: Any) -> None:
    encoder = PairEncoder(smollm2)
    assert encoder.added_bos_id is None
    assert encoder.encode_prompt("It is") == tuple(smollm2("It is").input_ids)


def test_named_templates(llama3: Any) -> None:
    default = llama3.chat_template
    expected = PairEncoder(llama3).encode_pair(chat())
    try:
        llama3.chat_template = {"default": default, "tool_use": NO_END}
        assert PairEncoder(llama3).encode_pair(chat()) == expected
        llama3.chat_template = {"tool_use": NO_END}
        with pytest.raises(UserError, match="templates are tool_use, none is default"):
            PairEncoder(llama3)
    finally:
        llama3.chat_template = default


CLOCK = "{{ strftime_now('%d %b %Y') }} " + LLAMA3


class TestClock:
    """Llama 3.2's template writes the date; a run that goes on tomorrow must not."""

    def _prompt(self, llama3: Any, **given: Any) -> str:
        encoder = PairEncoder(llama3, chat_template=CLOCK, **given)
        ids = encoder.encode_prompt([{"role": "user", "content": "hello"}])
        return str(llama3.decode(ids))

    def test_it_stands_still_where_it_was_set(self, llama3: Any) -> None:
        assert "26 Jul 2024" in self._prompt(llama3, date="2024-07-26")
        assert "01 Jan 2031" in self._prompt(llama3, date="2031-01-01")

    def test_today_is_one_day_for_all_of_an_encoder(self, llama3: Any) -> None:
        encoder = PairEncoder(llama3, chat_template=CLOCK)
        assert encoder.date is not None
        today = datetime.date.fromisoformat(encoder.date)
        assert abs((datetime.date.today() - today).days) <= 1
        encoder.date = "2024-07-26"
        ids = encoder.encode_prompt([{"role": "user", "content": "hello"}])
        assert "26 Jul 2024" in llama3.decode(ids)

    @pytest.mark.parametrize("before", ["", "\n", "  {% if true %}y{% endif %}\n", " \n x"])
    def test_nothing_else_of_the_template_changes(self, llama3: Any, before: str) -> None:
        """A template is Llama 3.2's, in short, with white space at its beginning."""
        template = before + (
            "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
            '{%- set date_string = strftime_now( "%d %b %Y" ) %}{%- endif %}{%- endif %}'
        )
        rest = "\n{{ date_string }}|" + LLAMA3
        turn = [{"role": "user", "content": "hello"}]
        encoder = PairEncoder(llama3, chat_template=template + rest, date="2024-07-26")
        written = before + "{%- set date_string = '26 Jul 2024' %}" + rest
        assert encoder.encode_prompt(turn) == PairEncoder(
            llama3, chat_template=written
        ).encode_prompt(turn)

    def test_a_format_that_is_worked_out_is_refused(self, llama3: Any) -> None:
        template = "{% set f = '%d' %}{{ strftime_now(f) }}" + LLAMA3
        encoder = PairEncoder(llama3, chat_template=template)
        with pytest.raises(UserError, match="a format that is not written out"):
            encoder.encode_prompt([{"role": "user", "content": "hello"}])

    def test_a_template_without_one_has_no_date(self, llama3: Any) -> None:
        assert PairEncoder(llama3, date="2024-07-26").date is None
