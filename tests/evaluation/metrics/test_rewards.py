"""Rewards: classifiers and reward models against transformers, functions of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from nemo_gdpo.config.evaluation import RewardConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.rewards import Answer, Reward, build_reward
from nemo_gdpo.io.arrays import Cache
from tests.support.models import llama3_tokenizer

from .test_novelty import LONG, save_classifier

CPU = torch.device("cpu")
CHAT = [{"role": "user", "content": "a good film"}]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache.sqlite") as opened:
        yield opened


DAY = "2031-01-31"


def build(cache: Cache, tokens: int = 4096, date: str = DAY, **settings: Any) -> Reward:
    return build_reward(RewardConfig(**settings), cache, CPU, tokens, date)


def answers(*texts: str, prompt: Any = "a film ") -> list[Answer]:
    return [Answer(prompt, text, f"file, line {n}") for n, text in enumerate(texts, start=1)]


def save_reward_model(directory: Path, *, pad: bool, outputs: int = 1) -> Path:
    """A tiny Llama with a scalar head."""
    tokenizer = llama3_tokenizer(pad="<|pad|>" if pad else None)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=outputs,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    LlamaForSequenceClassification(config).save_pretrained(directory)
    return directory


def test_vader_of_the_response_or_of_both(cache: Cache) -> None:
    plain = build(cache, kind="vader")
    both = build(cache, kind="vader", name="both", with_prompt=True)
    found = answers("is a joy", "is here", prompt="this terrible film ")
    assert plain(found)[0] > 0.5
    assert plain(found)[1] == 0.0
    assert both(found)[1] < -0.3
    assert both.name == "both"
    with pytest.raises(UserError, match="line 1: the prompt is a conversation"):
        both(answers("x", prompt=CHAT))


def test_classifier_against_transformers(cache: Cache, tmp_path: Path) -> None:
    directory = save_classifier(tmp_path / "model")
    reward = build(cache, kind="hf_classifier", path=str(directory), label="LABEL_1", tokens=8)
    model = BertForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [*LONG, "a", LONG[0]]
    for text, found in zip(texts, reward(answers(*texts)), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1]
        assert found == pytest.approx(float(expected), abs=1e-6)


def test_unknown_label_and_missing_head(cache: Cache, tmp_path: Path) -> None:
    directory = str(save_classifier(tmp_path / "model"))
    with pytest.raises(UserError, match="no label POSITIVE; its labels are LABEL_0, LABEL_1"):
        build(cache, kind="hf_classifier", path=directory, label="POSITIVE")
    with pytest.raises(UserError, match="2 outputs, a reward model has one"):
        build(cache, kind="hf_reward_model", path=directory)
    one = str(save_reward_model(tmp_path / "one", pad=True))
    with pytest.raises(UserError, match="one output; give kind=hf_reward_model"):
        build(cache, kind="hf_classifier", path=one, label="LABEL_0")
    headless = BertForSequenceClassification.from_pretrained(directory).bert
    headless.save_pretrained(directory)
    with pytest.raises(UserError, match=r"lacks weights of the model \(classifier"):
        build(cache, kind="hf_classifier", path=directory, label="LABEL_1")


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("prompt", [CHAT, "it was a good film: "])
def test_reward_model_against_transformers(
    cache: Cache, tmp_path: Path, pad: bool, prompt: Any
) -> None:
    """One at a time and in the model's template; with padding, batches give the same."""
    directory = save_reward_model(tmp_path / "model", pad=pad)
    reward = build(cache, kind="hf_reward_model", path=str(directory))
    model = LlamaForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = ["good", "very dull and long, and bad", "it was fine", "a"]
    found = reward(answers(*texts, prompt=prompt))
    expected = []
    for text in texts:
        if isinstance(prompt, str):
            ids = tokenizer(prompt + text)["input_ids"]
        else:
            turns = [*prompt, {"role": "assistant", "content": text}]
            ids = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids])).logits[0, 0]))
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in found}) == 4


def test_a_template_with_a_clock_writes_the_day_of_the_evaluation(
    cache: Cache, tmp_path: Path
) -> None:
    """Not the one on which it happens to be applied: a score would depend on it."""
    directory = save_reward_model(tmp_path / "model", pad=True)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    plain = tokenizer.chat_template

    def scored(template: Any, date: str = DAY) -> list[float]:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(directory)
        reward = build(cache, date=date, kind="hf_reward_model", path=str(directory))
        return reward(answers("good", prompt=CHAT))

    written = scored("31 Jan 2031 " + plain)
    clock = "{{ strftime_now('%d %b %Y') }} " + plain
    assert scored(clock) == written
    assert scored({"default": clock, "tool_use": "{{ 1 }}"}) == written
    assert scored(clock, "2031-02-28") == scored("28 Feb 2031 " + plain) != written
    with pytest.raises(UserError, match=r"hf_reward_model: chat template: .* not written out"):
        scored("{% set f = '%d' %}{{ strftime_now(f) }}" + plain)


def test_values_are_cached_by_content(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_reward_model(tmp_path / "model", pad=True)
    settings = {"kind": "hf_reward_model", "path": str(directory)}
    before = build(cache, **settings)(answers("good", "bad"))
    again: Any = build(cache, **settings)
    batches: list[int] = []
    forward = again._forward
    monkeypatch.setattr(again, "_forward", lambda b: batches.append(len(b)) or forward(b))
    assert again(answers("good", "bad")) == before
    assert batches == []
    assert again(answers("good", "new", "new"))[0] == before[0]
    assert batches == [1]
    torch.manual_seed(6)
    changed = LlamaForSequenceClassification.from_pretrained(directory)
    changed.score.weight.data.normal_()
    changed.save_pretrained(directory)
    assert build(cache, **settings)(answers("good"))[0] != before[0]


def test_what_a_model_would_cut_is_refused(cache: Cache, tmp_path: Path) -> None:
    directory = str(save_reward_model(tmp_path / "model", pad=True))
    reward = build(cache, kind="hf_reward_model", path=directory, max_length=12)
    with pytest.raises(UserError, match=r"file, line 2: \d+ tokens .* max_length is 12"):
        reward(answers("a", "a good film " * 5))


# --- functions ------------------------------------------------------------------------------

MODULE = """
def length(prompts, responses):
    assert len(prompts) == len(responses)
    return [len(p) + len(r) for p, r in zip(prompts, responses)]

def few(prompts, responses):
    return [1.0]

def odd(prompts, responses):
    return [0.5, float("nan")]

def text(prompts, responses):
    return ["1", "2"]

def broken(prompts, responses):
    raise RuntimeError("no\\nluck")

value = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"rewards_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_function(cache: Cache, functions: str) -> None:
    reward = build(cache, kind="python", entry_point=f"{functions}:length", name="length")
    assert reward(answers("abc", "", prompt="ab")) == [5.0, 2.0]
    assert reward.name == "length"


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("few", "gave 1 numbers for 2 responses"),
        ("odd", "gave nan for file, line 2"),
        ("text", "gave '1' for file, line 1"),
        ("broken", r"failed \(RuntimeError: no luck\)"),
    ],
)
def test_a_function_that_misbehaves(
    cache: Cache, functions: str, function: str, complaint: str
) -> None:
    reward = build(cache, kind="python", entry_point=f"{functions}:{function}")
    with pytest.raises(UserError, match=complaint):
        reward(answers("a", "b"))


@pytest.mark.parametrize(
    ("entry_point", "complaint"),
    [
        ("nowhere_at_all:f", "nowhere_at_all cannot be imported"),
        ("json", "is not an entry point"),
        ("json:nothing", "json has no function nothing"),
        ("string:digits", "string has no function digits"),
    ],
)
def test_a_function_that_is_not_there(cache: Cache, entry_point: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build(cache, kind="python", entry_point=entry_point)
