"""Toxicity and contradiction against transformers, and what has no value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.evaluation import EVALUATE, SafetyConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.checks import problems
from nemo_gdpo.evaluation.metrics.rewards import Answer, Reward, Unscored
from nemo_gdpo.evaluation.metrics.safety import premise_of, safety_of
from nemo_gdpo.evaluation.models import class_index
from nemo_gdpo.evaluation.report.console import render_table
from nemo_gdpo.io.arrays import Cache

from ..written_runs import NO_ENCODER, point, row, run, write_run
from .test_novelty import LONG, save_classifier

CHAT = [
    {"role": "system", "content": "f e d"},
    {"role": "user", "content": "one two"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "a b c d"},
]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache.sqlite") as opened:
        yield opened


def build(cache: Cache, **settings: Any) -> list[Reward]:
    return safety_of(SafetyConfig(**settings), cache, torch.device("cpu"), 64)


def answers(*texts: str, prompt: Any = "one two three") -> list[Answer]:
    return [Answer(prompt, text, f"file, line {n}") for n, text in enumerate(texts, start=1)]


def expected(directory: Path, *texts: str, label: int) -> float:
    model = BertForSequenceClassification.from_pretrained(directory).eval()
    inputs = AutoTokenizer.from_pretrained(directory)(*texts, return_tensors="pt")
    with torch.no_grad():
        return float(model(**inputs).logits.double().softmax(-1)[0, label])


def test_toxicity_reads_the_response_alone(cache: Cache, tmp_path: Path) -> None:
    directory = save_classifier(tmp_path / "model")
    (toxicity,) = build(cache, toxicity=str(directory), toxicity_label="LABEL_1")
    texts = [*LONG, "a", LONG[0]]
    for text, found in zip(texts, toxicity(answers(*texts)), strict=True):
        assert found == pytest.approx(expected(directory, text, label=1), abs=1e-6)
    assert toxicity.name == "toxicity"


@pytest.mark.parametrize("prompt", ["a b c d", CHAT])
def test_contradiction_reads_premise_and_response(
    cache: Cache, tmp_path: Path, prompt: Any
) -> None:
    """In this order, each with its own token types; of a conversation what the user said last."""
    directory = save_classifier(tmp_path / "model", labels=3)
    (contradiction,) = build(cache, entailment=str(directory), contradiction_label=2)
    texts = [LONG[0], "six", "a b"]
    found = contradiction(answers(*texts, prompt=prompt))
    for text, value in zip(texts, found, strict=True):
        assert value == pytest.approx(expected(directory, "a b c d", text, label=2), abs=1e-6)
        assert value != pytest.approx(expected(directory, text, "a b c d", label=2), abs=1e-6)


def test_a_conversation_without_a_user_gives_its_last_message() -> None:
    assert premise_of([{"role": "assistant", "content": "x"}]) == "x"
    assert premise_of(CHAT) == "a b c d"


def test_labels_by_name_case_and_number() -> None:
    labels = {0: "CONTRADICTION", 1: "neutral", 2: "Toxic", 3: "toxic"}
    place = Path("m")
    assert class_index("key", place, labels, "contradiction") == 0
    assert class_index("key", place, labels, "toxic") == 3
    assert class_index("key", place, labels, 1) == 1
    for unknown in ("TOXIC", "entailment", 4):
        with pytest.raises(UserError, match=rf"^key: m has no label {unknown}; .* 1 neutral,"):
            class_index("key", place, labels, unknown)


def test_a_label_that_is_missing_names_its_key(cache: Cache, tmp_path: Path) -> None:
    directory = str(save_classifier(tmp_path / "model"))
    with pytest.raises(UserError, match=r"safety\.toxicity_label: .* no label toxic; its labels"):
        build(cache, toxicity=directory)
    with pytest.raises(UserError, match=r"safety\.contradiction_label: .* no label contradiction"):
        build(cache, entailment=directory)


def test_what_is_too_long_has_no_value(cache: Cache, tmp_path: Path) -> None:
    directory = str(save_classifier(tmp_path / "model"))
    (toxicity,) = build(cache, toxicity=directory, toxicity_label=0, max_length=5)
    short, long = toxicity.score(answers("a b c", "a b c d e f g"))
    assert isinstance(short, float)
    assert isinstance(long, Unscored)
    assert "line 2: 7 tokens for toxicity, whose model sees 5" in long.reason


def test_an_evaluation_with_both(tmp_path: Path) -> None:
    """Values of the table are those of the functions, and stand in the console table."""
    model = save_classifier(tmp_path / "model", labels=3)
    directory = write_run(
        tmp_path / "base",
        [row("p", [LONG[0], LONG[2]], prompt="one two"), row("q", ["a b", "six"], prompt="a b")],
    )
    results = run(
        tmp_path / "out",
        {"base": directory},
        NO_ENCODER,
        f"evaluation.safety.toxicity={model}",
        "evaluation.safety.toxicity_label=1",
        f"evaluation.safety.entailment={model}",
        "evaluation.safety.contradiction_label=LABEL_0",
    )
    toxic = [expected(model, text, label=1) for text in (LONG[0], LONG[2])]
    found = point(results)
    assert found.per_prompt["toxicity"][0] == pytest.approx(sum(toxic) / 2, abs=1e-6)
    assert found.per_prompt["toxic"][0] == sum(value > 0.5 for value in toxic) / 2
    against = [expected(model, "a b", text, label=0) for text in ("a b", "six")]
    assert found.per_prompt["contradiction"][1] == sum(value > 0.5 for value in against) / 2
    table = render_table(results)
    assert "toxicity" in table and "contradiction" in table
    assert results.samples[0].responses[0].rewards["toxicity"][0] == pytest.approx(toxic[0])


def test_a_reward_of_the_same_name_is_refused(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "model")
    reward = f"{{kind: hf_classifier, name: toxicity, path: {model}, label: LABEL_1}}"
    arguments = [f"evaluation.safety.toxicity={model}", f"evaluation.rewards=[{reward}]"]
    config = EVALUATE.parse(compose(arguments, root=EVALUATE).plain)
    found = [str(problem) for problem in problems(config)]
    assert any("one of them is called toxicity" in text for text in found), found
    arguments = [f"evaluation.safety.entailment={tmp_path}/nothing"]
    config = EVALUATE.parse(compose(arguments, root=EVALUATE).plain)
    found = [str(problem) for problem in problems(config)]
    assert any("safety.entailment" in text and "does not exist" in text for text in found), found
