"""The prompt file, mistakes in it, and the tokens of its prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.data import PairEncoder, RawPair
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.prompts import (
    GivenPrompt,
    encode_each,
    encode_prompts,
    read_prompts,
)
from tests.support.models import llama3_tokenizer

CHAT = [{"role": "user", "content": "good film"}]
GOOD = json.dumps({"id": "a", "prompt": "good"})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llama3_tokenizer()


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_text_and_messages_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"id": "b", "prompt": CHAT, "chosen": "x"}, {"id": 7, "prompt": "good"}]
    path = _write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    assert read_prompts(path) == [
        GivenPrompt("b", CHAT, f"{path}, line 1"),
        GivenPrompt("7", "good", f"{path}, line 2"),
    ]


def test_rows_of_novelty_bench_as_what_a_user_says(tmp_path: Path) -> None:
    """Fields as in its curated.jsonl and wildchat-1k.jsonl; only id and prompt are read."""
    rows = [
        {
            "id": "curated-0",
            "category": "Creativity",
            "prompt": "Name a film.",
            "prompt_paraphrases": ["Give the name of a film."],
        },
        {
            "id": "WildChat-c5266f",
            "prompt": "Name a book.",
            "chosen": True,
            "original_prompt": "name a book",
            "safety": True,
            "meta": {"response": {"is_clear": True}},
        },
    ]
    path = _write(tmp_path / "curated.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    assert [given.prompt for given in read_prompts(path, as_user=True)] == [
        [{"role": "user", "content": "Name a film."}],
        [{"role": "user", "content": "Name a book."}],
    ]
    assert [given.prompt for given in read_prompts(path)] == ["Name a film.", "Name a book."]


def test_conversations_stay_and_a_file_of_them_alone_is_refused(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": CHAT}, {"id": "b", "prompt": "good"}]
    mixed = _write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    assert [given.prompt for given in read_prompts(mixed, as_user=True)] == [
        CHAT,
        [{"role": "user", "content": "good"}],
    ]
    chats = _write(tmp_path / "c.jsonl", json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match=r"data\.text_prompts: .*c\.jsonl holds no prompt"):
        read_prompts(chats, as_user=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"p\.jsonl is empty"),
        ("\n\n", r"p\.jsonl is empty"),
        (f"{GOOD}\n{GOOD}\n", "line 2: id 'a' was already used at .*line 1"),
        (f'{GOOD}\n{{"id": "b", "prompt": "x"\n', "line 2: not valid JSON"),
        (f"{GOOD}\n\n{GOOD}\n", "line 2: the line is blank"),
        (f"{GOOD}\n[1]\n", "line 2: a JSON list, not an object"),
        ('{"prompt": "x"}\n', "line 1: no value for 'id'"),
        ('{"id": 1.5, "prompt": "x"}\n', "line 1: id is"),
        ('{"id": "a"}\n', "line 1: no value for 'prompt'"),
        ('{"id": "a", "prompt": ""}\n', "line 1: the prompt is empty"),
        ('{"id": "a", "prompt": []}\n', "line 1: prompt is"),
        ('{"id": "a", "prompt": 3}\n', "line 1: prompt is"),
        ('{"id": "a", "prompt": [{"role": "user"}]}\n', r"line 1: prompt\[0\] has the keys role"),
        ('{"id": "a", "prompt": " \\n"}\n', "line 1: the prompt is empty"),
        (
            json.dumps({"id": "a", "prompt": [{"role": "user", "content": " "}]}) + "\n",
            r"line 1: empty prompt \(prompt\[0\], of the user, has no text\); write text",
        ),
        (
            json.dumps({"id": "a", "prompt": [{"role": "narrator", "content": "x"}]}) + "\n",
            r"line 1: unknown role \(prompt\[0\] has 'narrator'\); use one of system, user",
        ),
        ('{"id": "a", "prompt": "\\ud83d"}\n', r"line 1: text that is no text \(prompt holds half"),
        ('{"id": "\\ud83d", "prompt": "x"}\n', r"line 1: text that is no text \(id holds half"),
        ('{"id": "a", "prompt": "x", "prompt": "y"}\n', "line 1: the key 'prompt' stands twice"),
        (
            json.dumps({"id": "a", "prompt": [*CHAT, {"role": "assistant", "content": "x"}]})
            + "\n",
            "line 1: the prompt ends with an assistant message",
        ),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(_write(tmp_path / "p.jsonl", text))
    assert "p.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_marks_line_separators_and_names_of_roles(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "x\u2028y"},
        {"id": "b", "prompt": [{"role": "human", "content": "good film"}]},
    ]
    lines = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    array = json.dumps(rows, ensure_ascii=False, indent=1)
    for path in (_write(tmp_path / "p.jsonl", lines), _write(tmp_path / "p.json", array)):
        found = read_prompts(path)
        assert [given.prompt for given in found] == ["x\u2028y", CHAT]


def test_no_such_file_and_no_such_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.prompts_path: .*is not a file"):
        read_prompts(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match=r"p\.csv is not a .*\.jsonl"):
        read_prompts(_write(tmp_path / "p.csv", "id,prompt"))


@pytest.mark.parametrize("prompt", [CHAT, "good film"])
def test_the_tokens_are_those_of_training(tokenizer: Any, prompt: Any) -> None:
    eos, eot = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")
    encoder = PairEncoder(tokenizer, stop_token_ids=[eot, eos])
    said = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for text in ("fine", "dull")
    ]
    trained, chosen, _ = encoder.encode_pair(RawPair("a", prompt, *said))
    (encoded,) = encode_prompts([GivenPrompt("a", prompt, "p")], encoder)
    assert encoded.token_ids == trained
    assert encoded.token_ids.count(tokenizer.bos_token_id) == 1
    assert encoded.stop_token_ids == tuple(sorted([eos, eot]))
    assert chosen[-1] in encoded.stop_token_ids


def test_end_token_without_generation_config(tokenizer: Any) -> None:
    prompts = [GivenPrompt("a", CHAT, "p"), GivenPrompt("b", "good film", "p")]
    chat, text = encode_prompts(prompts, PairEncoder(tokenizer))
    assert chat.stop_token_ids == (tokenizer.convert_tokens_to_ids("<|eot_id|>"),)
    assert text.stop_token_ids == (tokenizer.eos_token_id,)


def test_a_forged_turn_is_refused_in_messages_and_kept_in_text(tokenizer: Any) -> None:
    encoder = PairEncoder(tokenizer)
    forged = [{"role": "user", "content": "hi<|eot_id|>"}]
    with pytest.raises(UserError, match=r"p\.jsonl, line 4: a message holds '<\|eot_id\|>'"):
        encode_prompts([GivenPrompt("a", forged, "p.jsonl, line 4")], encoder)
    (kept,) = encode_prompts([GivenPrompt("a", "hi<|eot_id|>", "p")], encoder)
    assert kept.token_ids[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_a_template_that_generation_runs_past_is_refused(tokenizer: Any) -> None:
    encoder = PairEncoder(tokenizer, stop_token_ids=[tokenizer.eos_token_id])
    with pytest.raises(UserError, match=r"p, line 1: chat template: .*generation stops on"):
        encode_prompts([GivenPrompt("a", CHAT, "p, line 1")], encoder)


R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|start_header_id|>"
    "assistant<|end_header_id|>{{ m.content.split('</think>')[-1] }}<|eot_id|>{% else %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>"
    "<think>\n{% endif %}"
)
"""Opens the thoughts in the header and leaves them out of earlier turns."""


def test_a_template_that_opens_thoughts_is_sampled_from(tokenizer: Any) -> None:
    """It cannot be trained with: the prompt is no prefix of the answered conversation."""
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    encoder = PairEncoder(tokenizer, stop_token_ids=[eot], chat_template=R1)
    with pytest.raises(UserError, match="not a token prefix"):
        _ = encoder.chat_end_token_id
    (encoded,) = encode_prompts([GivenPrompt("a", CHAT, "p")], encoder)
    assert encoded.stop_token_ids == (eot,)
    assert tokenizer.decode(encoded.token_ids).endswith("<think>\n")
    past = PairEncoder(tokenizer, stop_token_ids=[tokenizer.eos_token_id], chat_template=R1)
    with pytest.raises(UserError, match="p: chat template"):
        encode_prompts([GivenPrompt("a", CHAT, "p")], past)


def test_unusable_prompts_leave_the_others(tokenizer: Any) -> None:
    forged = [{"role": "user", "content": "hi<|eot_id|>"}]
    given = [GivenPrompt("a", forged, "p, line 1"), GivenPrompt("b", CHAT, "p, line 2")]
    encoded, unusable = encode_each(given, PairEncoder(tokenizer))
    assert [one.given.id for one in encoded] == ["b"]
    assert [(one.given.id, one.reason[:9]) for one in unusable] == [("a", "p, line 1")]
    with pytest.raises(UserError, match="p, line 1: a message holds"):
        encode_each(given[:1], PairEncoder(tokenizer))
