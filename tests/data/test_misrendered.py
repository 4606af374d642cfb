"""Templates and tokenizers that would make something else of a pair without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.data import PairEncoder, RawPair, build_dataset
from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.from_config import build_split
from nemo_gdpo.data.templates import TemplateFaultError, read_template
from nemo_gdpo.errors import UserError
from tests.support.tokenizers import LLAMA3, sentencepiece_tokenizer

Write = Callable[..., Path]
USER = {"role": "user", "content": "Is it good?"}
SYSTEM = {"role": "system", "content": "be brief"}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def chat(prompt: Any = None) -> RawPair:
    return RawPair("7", prompt or [USER], said("fine"), said("bad"), where="f.jsonl, line 7")


def text(prompt: str, chosen: str, rejected: str) -> RawPair:
    return RawPair("7", prompt, chosen, rejected, where="f.jsonl, line 7")


# -- 12: text pairs under a tokenizer that puts a space before every text --------------------------


@pytest.fixture(scope="module")
def llama2_like() -> Any:
    return sentencepiece_tokenizer()


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [("Answer:\n", "fine"), ("It is", " good"), ("It", " is good"), ("Answer: (", "fine)")],
)
def test_text_pairs_are_tokenised_as_joined(llama2_like: Any, prompt: str, chosen: str) -> None:
    apart = llama2_like(chosen, add_special_tokens=False).input_ids
    whole = llama2_like(prompt + chosen).input_ids
    assert llama2_like(prompt).input_ids + apart != whole  # or there would be nothing to mend
    encoder = PairEncoder(llama2_like)
    ids, taught, _ = encoder.encode_pair(text(prompt, chosen, " bad"))
    assert list(ids + taught) == [*whole, llama2_like.eos_token_id]
    assert ids == encoder.encode_prompt(prompt)
    assert llama2_like.decode(ids + taught, skip_special_tokens=True) == prompt + chosen


def test_an_end_that_the_text_spells_is_not_doubled(llama2_like: Any) -> None:
    encoder = PairEncoder(llama2_like)
    spelled = encoder.encode_pair(text("It is", " good</s>", " bad"))
    assert spelled == encoder.encode_pair(text("It is", " good", " bad"))


def test_a_prompt_that_shares_a_token_with_the_response_is_refused(llama2_like: Any) -> None:
    with pytest.raises(BadPairError, match=r"line 7, pair '7': prompt and response share a token"):
        PairEncoder(llama2_like).encode_pair(text("It is ", "good", "bad"))


@pytest.mark.parametrize("family", ["llama3", "smollm2", "gemma"])
def test_other_tokenizers_keep_their_tokens(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    _, taught, _ = PairEncoder(tokenizer).encode_pair(text("It is", " good", " bad"))
    own = tokenizer(" good", add_special_tokens=False).input_ids
    assert list(taught) == [*own, tokenizer.eos_token_id]


# -- 13: two BOS -----------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_byte_order_mark_of_a_template_file_is_no_text(llama3: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jinja", b"\xef\xbb\xbf" + LLAMA3.encode())
    assert read_template(path) == LLAMA3
    with_mark = PairEncoder(llama3, chat_template=read_template(path)).encode_pair(chat())
    assert with_mark == PairEncoder(llama3).encode_pair(chat())


@pytest.mark.parametrize("before", ["\n", "\r\n", "\ufeff", "\u200b", "\n\n"])
@pytest.mark.parametrize("family", ["llama3", "smollm2", "zephyr", "llama2"])
def test_nothing_may_stand_before_the_bos(
    family: str, before: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(family)
    bos = tokenizer.bos_token
    own = tokenizer.chat_template
    template = before + (own if bos in own or "bos_token" in own else "{{ bos_token }}" + own)
    # Jinja reads \r\n as \n.
    with pytest.raises(UserError, match=r"line 7.*chat template: .*(before the|two BOS)") as caught:
        PairEncoder(tokenizer, chat_template=template).encode_pair(chat())
    assert isinstance(caught.value, TemplateFaultError)
    assert "\n" not in str(caught.value)


def test_a_template_may_begin_with_text(llama3: Any) -> None:
    template = (
        "{% for m in messages %}\n\n{{ m['role'] }}: {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}\n\nassistant:{% endif %}"
    )
    prompt = PairEncoder(llama3, chat_template=template).encode_prompt([USER])
    assert llama3.decode(prompt).startswith("<|begin_of_text|>\nuser: Is it good?")


@pytest.mark.parametrize("before", ["\n", "\ufeff"])
def test_nothing_may_stand_before_the_bos_of_a_text(llama3: Any, before: str) -> None:
    with pytest.raises(BadPairError, match=r"line 7, pair '7': prompt: .*before the BOS token"):
        PairEncoder(llama3).encode_pair(text(f"{before}<|begin_of_text|>It is", " good", " bad"))


# -- 16: conversations that a template refuses, or does not show -----------------------------------


def test_system_rows_that_a_template_refuses_are_counted(gemma: Any, write_jsonl: Write) -> None:
    rows = [
        {"prompt": [SYSTEM, USER], "chosen": said("fine"), "rejected": said("bad")},
        {"prompt": [USER], "chosen": said("fine"), "rejected": said("bad")},
    ]
    with pytest.raises(UserError, match=r"line 1.*refuses the roles system, user.*on_bad_pair=dro"):
        build_dataset(write_jsonl(rows), gemma)
    built = build_dataset(write_jsonl(rows), gemma, on_bad_pair="drop")
    assert len(built) == 1
    assert built.stats.bad_dropped == {"the template refuses the conversation": 1}


def test_a_message_that_a_template_leaves_out(llama2: Any, write_jsonl: Write) -> None:
    rows = [
        {"prompt": [SYSTEM, USER], "chosen": said("fine"), "rejected": said("bad")},
        {"prompt": [USER], "chosen": said("fine"), "rejected": said("bad")},
    ]
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}{{ m['content'] }}"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    with pytest.raises(UserError, match=r"line 1.*it leaves out prompt\[0\], of the system"):
        build_dataset(write_jsonl(rows), llama2, chat_template=template)
    built = build_dataset(write_jsonl(rows), llama2, chat_template=template, on_bad_pair="drop")
    assert built.stats.bad_dropped == {"the template leaves a message out": 1}


# -- 27: templates that fail -----------------------------------------------------------------------

FAILING = {
    "{{ 1 / 0 }}": r"it fails with ZeroDivisionError \(division by zero\)",
    "{{ messages[0]['content'] + 1 }}": "it fails with TypeError",
    "{{ messages.nothing.at_all }}": "it fails with UndefinedError",
    "{{ messages[5]['content'] }}": "it fails with UndefinedError",
    "{{ undefined_function() }}": "it fails with UndefinedError",
    "{{ messages | sort(attribute='x.y') | first | int('a') }}": "it fails with ",
    "{{ range(10000000) | list }}": "it fails with OverflowError",
    "{{ ().__class__.__bases__ }}": "it fails with SecurityError",
    "{% for m in messages %}{{ m['content'] }}": "line 1 is not Jinja",
    "a\nb\n{{ messages | no_such_filter }}": "line 3 is not Jinja",
    "{% if %}": "line 1 is not Jinja",
    "{{ messages": "line 1 is not Jinja",
    "{% include 'other' %}": "it fails with ",
}


@pytest.mark.parametrize("template", FAILING)
def test_a_template_that_fails_is_blamed_itself(llama3: Any, template: str) -> None:
    encoder = PairEncoder(llama3, chat_template=template)
    with pytest.raises(
        TemplateFaultError, match=f"line 7.*chat template: {FAILING[template]}"
    ) as e:
        encoder.encode_pair(chat())
    assert "refuses the roles" not in str(e.value)
    assert "\n" not in str(e.value)


def test_a_template_that_fails_is_never_dropped(llama3: Any, write_jsonl: Write) -> None:
    rows = [{"prompt": [USER], "chosen": said("fine"), "rejected": said("bad")}]
    with pytest.raises(UserError, match="ZeroDivisionError"):
        build_dataset(write_jsonl(rows), llama3, chat_template="{{ 1 / 0 }}", on_bad_pair="drop")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LLAMA3.encode("utf-16"), "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"{{ messages }} \xe9", "cannot be read"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
    ],
)
def test_template_files_that_are_none(
    llama3: Any, tmp_path: Path, content: bytes, message: str
) -> None:
    path = write(tmp_path / "t.jinja", content)
    section = DataConfig(train_path="pairs.jsonl", chat_template=path)
    with pytest.raises(UserError, match=rf"data\.chat_template=.*t\.jinja {message}"):
        build_split(section, "train", llama3, tmp_path, require_scores=False)


def test_a_template_that_refuses_every_conversation_is_no_pairs_fault(llama3: Any) -> None:
    """It accepts the prompt and refuses what is made up to find its end token."""
    template = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
        "{{ bos_token }}{{ messages[0]['content'] }}"
    )
    with pytest.raises(TemplateFaultError, match="refuses the roles user, assistant"):
        PairEncoder(llama3, chat_template=template).encode_pair(chat())


# -- 17: what is said of pairs that occur twice ----------------------------------------------------


def test_contradictions_and_repeats_are_counted(llama3: Any, write_jsonl: Write) -> None:
    good = {"prompt": "It is", "chosen": " good", "rejected": " bad"}
    swapped = {"prompt": "It is", "chosen": " bad", "rejected": " good"}
    built = build_dataset(write_jsonl([good, swapped, good, {**good, "prompt": "It"}]), llama3)
    assert (built.stats.contradictory, built.stats.repeated, built.stats.pairs) == (2, 1, 4)
