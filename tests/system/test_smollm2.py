"""SmolLM2-135M-Instruct itself: our Megatron model against transformers, its tokenizer, a step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.film_reviews.demo import base_model
from nemo_gdpo.conversion.cli import main as convert
from nemo_gdpo.training.parity import megatron_logits
from tests.support.commands import QUIET, cli
from tests.support.data import write_jsonl

pytestmark = pytest.mark.real_model
GREEDY = 200
QUESTIONS = ("Why is the sky blue?", "Write a short story about a lighthouse keeper.")
BETA, RATE = 0.1, 1e-6


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as the demo unpacks it."""
    directory = tmp_path_factory.mktemp("smollm2") / "hf"
    base_model(directory)
    return directory


@pytest.fixture(scope="module")
def megatron(hf: Path) -> Path:
    destination = hf.parent / "megatron"
    assert convert(["hf-to-megatron", str(hf), str(destination)]) == 0
    return destination


@pytest.fixture(scope="module")
def policy(hf: Path) -> Iterator[Any]:
    yield AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()


def chat(hf: Path, question: str) -> torch.Tensor:
    """Token ids [S] of a question under the model's own chat template."""
    ids = AutoTokenizer.from_pretrained(hf).apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return torch.tensor(ids)


def test_verify_on_its_own_tokenizer(hf: Path, megatron: Path, tmp_path: Path) -> None:
    """Every tensor, and the logits of the built-in prompts within 2e-4: they reach 30, where
    float32 has steps of 2e-6."""
    status = convert(
        ["verify", str(hf), str(megatron), "--tolerance", "2e-4", "--report", str(tmp_path)],
        megatron_logits=megatron_logits,
    )
    found = json.loads((tmp_path / "report.json").read_text())
    assert status == 0, found
    assert found["tensors"]["tensors"] == 272
    assert found["logits"]["positions"] > 200
    assert found["logits"]["argmax_agreement"] == 1.0
    assert found["logits"]["max_logprob_gap"] < 1e-4
    assert "built-in texts" in found["logits"]["prompts"]


def test_two_hundred_greedy_tokens(hf: Path, megatron: Path, policy: Any) -> None:
    """Greedy decoding of both is the same, token by token.

    transformers generates; our model sees the whole text once. If its most likely token after every
    prefix is transformers' next token, then by induction it would have generated the same text:
    each of its choices is made after the same prefix.
    """
    prompt = chat(hf, QUESTIONS[1])
    text = policy.generate(
        prompt[None],
        do_sample=False,
        max_new_tokens=GREEDY,
        min_new_tokens=GREEDY,
        eos_token_id=None,
        pad_token_id=0,
    )[0]
    assert len(text) == len(prompt) + GREEDY
    logits_SV = megatron_logits(megatron, [text])[0]
    assert torch.equal(logits_SV[len(prompt) - 1 : -1].argmax(-1), text[len(prompt) :])


def sum_of_logps(model: Any, prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """log p(answer | prompt)."""
    ids = torch.cat([prompt, answer])
    logps = model(ids[None]).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return logps.gather(1, answer[:, None]).sum()


@pytest.mark.nightly
def test_two_training_steps(hf: Path, megatron: Path, tmp_path: Path) -> None:
    """DPO's losses at steps 1 and 2, computed with plain transformers and torch's AdamW.

    Step 1 is ln 2 for any model that is its own reference; step 2 depends on the gradient of every
    weight. Adam's first step moves each weight by the learning rate in the direction of its
    gradient's sign, so that rounding shows where a gradient is zero within rounding.
    """
    answers = [
        ("Light is scattered by the air.", "Because it is painted."),
        ("The lamp burned all night.", "I do not know any stories."),
    ]
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": bad}],
        }
        for question, (good, bad) in zip(QUESTIONS, answers, strict=True)
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    done = cli(
        "train",
        "objective=dpo",
        f"objective.beta={BETA}",
        f"model.restore_from_path={megatron}",
        f"data.train_path={data}",
        f"output_dir={tmp_path / 'run'}",
        "model.global_batch_size=2",
        "model.micro_batch_size=2",
        "trainer.max_steps=2",
        "trainer.max_epochs=null",
        "data.max_length=128",
        "data.max_prompt_length=64",
        f"optim.lr={RATE}",
        "optim.weight_decay=0",
        "optim.betas=[0.9,0.95]",
        "optim.sched.name=constant",
        "optim.sched.warmup_steps=0",
        "trainer.gradient_clip_val=null",
        *QUIET,
    )
    assert done.status == 0, done.err
    entries = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    found = [entry["loss"] for entry in entries if "loss" in entry]

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(hf)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    triples = [
        (chat(hf, question), *(torch.tensor([*tokenizer(text)["input_ids"], end]) for text in pair))
        for question, pair in zip(QUESTIONS, answers, strict=True)
    ]
    with torch.no_grad():
        references = [
            [sum_of_logps(model, prompt, answer) for answer in pair] for prompt, *pair in triples
        ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    expected = []
    for _ in range(2):
        losses = []
        for (prompt, *pair), (good, bad) in zip(triples, references, strict=True):
            chosen, rejected = (sum_of_logps(model, prompt, answer) for answer in pair)
            margin = (chosen - good) - (rejected - bad)
            losses.append(-torch.nn.functional.logsigmoid(BETA * margin))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert expected[1] < 0.68  # the step did something
    assert found == pytest.approx(expected, rel=1e-3)
    assert entries[0]["logps/chosen"] == pytest.approx(
        sum(float(good) for good, _ in references) / len(references), abs=1e-2
    )
