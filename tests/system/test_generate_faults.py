"""Real vLLM: logits that are no numbers, stop texts and stop tokens, settings it does not take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED
from tests.support.data import write_jsonl
from tests.support.models import save_model

from .sampled_runs import generate, rows

pytestmark = pytest.mark.engine
WORDS = ["good film", "the review was", "liked it"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("faults") / "model", head_dim=32)


def _overrides(model: Path, output: Path, prompts: list[str], *more: str) -> list[str]:
    file = output.with_name(f"{output.name}.jsonl")
    write_jsonl(file, [{"id": f"p{n}", "prompt": text} for n, text in enumerate(prompts)])
    return [
        f"model.restore_from_path={model}", f"data.prompts_path={file}", f"output_dir={output}",
        "generation.num_samples=2", "generation.max_tokens=12", "generation.seed=3", *more,
    ]  # fmt: skip


def _poisoned(model: Path, target: Path, poison: Any) -> Path:
    """A copy whose weights are changed by `poison`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    poison(tensors, tokenizer)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_model_of_no_numbers_is_not_sampled_from(model: Path, tmp_path: Path) -> None:
    """It gave token 0 for ever, with exit status 0."""

    def poison(tensors: dict[str, torch.Tensor], tokenizer: Any) -> None:
        del tokenizer
        tensors["model.norm.weight"][0] = float("nan")

    broken = _poisoned(model, tmp_path / "broken", poison)
    done = generate(*_overrides(broken, tmp_path / "out", WORDS))
    assert done.status == EXIT_FAILED, done.err
    (line,) = done.complaints
    assert "the model gives logits that are not numbers" in line
    assert "3 of 3 rows were not made" in line
    assert not list((tmp_path / "out").glob("generations-*.jsonl"))


@pytest.mark.nightly
def test_one_prompt_of_no_numbers_leaves_the_others(model: Path, tmp_path: Path) -> None:
    """A token of its own whose embedding is broken, and that is never drawn."""
    word = " bad"

    def poison(tensors: dict[str, torch.Tensor], tokenizer: Any) -> None:
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][token] = 0.0
        tensors["model.embed_tokens.weight"][token] = float("nan")

    broken = _poisoned(model, tmp_path / "broken", poison)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    greedy = ["generation.temperature=0", "generation.num_samples=1"]
    overrides = _overrides(broken, tmp_path / "out", [*WORDS, f"a{word} film"], *greedy)
    done = generate(*overrides)
    assert done.status == EXIT_FAILED, done.err
    assert "1 of 4 rows were not made (prompt 'p3' at T=0: the model gives" in done.complaints[-1]
    assert sorted(key for key, _ in rows(tmp_path / "out")) == ["p0", "p1", "p2"]


def test_stop_texts_and_stop_tokens(model: Path, tmp_path: Path) -> None:
    """What is drawn first ends the answer, written as an escape or as a special token."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = generate(*_overrides(model, tmp_path / "plain", WORDS, "generation.temperature=2.0"))
    assert plain.status == EXIT_DONE, plain.err
    special = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    stop = "generation.stop=['<|start_header_id|>','\\n']"
    done = generate(*_overrides(model, tmp_path / "out", WORDS, "generation.temperature=2.0", stop))
    assert done.status == EXIT_DONE, done.err
    ended = 0
    for row in rows(tmp_path / "out").values():
        for ids, text in zip(row["token_ids"], row["outputs"], strict=True):
            assert special not in ids[:-1]
            assert "\n" not in text
            ended += ids[-1] == special
    drawn = [ids for row in rows(tmp_path / "plain").values() for ids in row["token_ids"]]
    assert ended == sum(special in ids for ids in drawn)


def test_a_temperature_that_vllm_does_not_take_is_refused_at_once(
    model: Path, tmp_path: Path
) -> None:
    done = generate(*_overrides(model, tmp_path / "out", WORDS, "generation.temperature=3.0"))
    assert done.status == 2
    assert "generation.temperature: 3.0 is above 2" in done.complaints[0]
