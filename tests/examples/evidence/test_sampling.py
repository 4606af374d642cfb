"""Sampling and scoring against transformers and by hand, on a model of a few thousand weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.film_reviews.evidence.measure import (
    Kept,
    Sampled,
    Untouched,
    find_modes,
    means,
    measure,
    rewards,
)
from examples.film_reviews.evidence.sampling import (
    CausalLM,
    Response,
    likeliest,
    sample,
    scores,
)
from examples.film_reviews.evidence.writer import Size, _model, _tokenizer, _train

TEXTS = ["a good film about a bad man .", "a bad film , and a long one .", "good fun , all of it ."]
PROMPTS = ["a good", "a bad film", "good"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """It has seen three sentences until it ends them, and not until it knows them by heart."""
    size = Size(
        vocabulary=300, hidden=16, layers=2, heads=2, intermediate=32, epochs=60, batch=3,
        learning_rate=1e-2,
    )  # fmt: skip
    tokenizer = _tokenizer(TEXTS, size)
    torch.manual_seed(0)
    model = _model(tokenizer, size)
    _train(model, tokenizer, TEXTS, TEXTS, size, 0)
    return saved(model, tokenizer, tmp_path_factory.mktemp("writer"))


def saved(model: Any, tokenizer: Any, directory: Path) -> CausalLM:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return CausalLM(directory)


def log_probs(lm: CausalLM, prompt: list[int], responses: list[list[int]]) -> list[float]:
    return [one.reference_logp for one in scores(lm, None, prompt, responses)]


def test_draws_follow_the_softmax(lm: CausalLM) -> None:
    """First tokens of 4,000 responses against the model's own probabilities, within 4 sigma."""
    number = 4000
    (found,) = sample(lm, PROMPTS[:1], number, temperature=0.7, max_tokens=1, seed=3)
    with torch.no_grad():
        logits = lm.network(torch.tensor([lm.prompt_ids(PROMPTS[0])])).logits[0, -1, :]
    expected = (logits / 0.7).softmax(-1)
    counts = torch.bincount(torch.tensor([r.tokens[0] for r in found]), minlength=len(expected))
    sigma = (expected * (1 - expected) / number).sqrt()
    assert ((counts / number - expected).abs() <= 4 * sigma + 2e-3).all()


def test_a_near_zero_temperature_is_greedy_search(lm: CausalLM) -> None:
    """With a cache from which rows are dropped, and prompts of different lengths."""
    found = sample(lm, PROMPTS, 2, temperature=1e-6, max_tokens=12, seed=0)
    for prompt, responses in zip(PROMPTS, found, strict=True):
        ids = lm.prompt_ids(prompt)
        expected = lm.network.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0
        )[0, len(ids) :].tolist()
        if 0 in expected:
            expected = expected[: expected.index(0) + 1]
        assert [list(r.tokens) for r in responses] == [expected, expected]
        assert responses[0].finished == (expected[-1] == 0)


def test_rows_that_end_leave_the_others_alone(lm: CausalLM) -> None:
    """Every token's log-probability, computed at once for the complete response, is likely."""
    (found,) = sample(lm, PROMPTS[:1], 64, temperature=1.0, max_tokens=30, seed=5)
    assert {r.finished for r in found} == {True, False}
    assert len({len(r.tokens) for r in found}) > 3
    assert all(0 not in r.tokens[:-1] for r in found)
    # The mean of log p over draws is minus the entropy; a wrong cache would draw unlikely tokens.
    ids = lm.prompt_ids(PROMPTS[0])
    log_p = torch.tensor(log_probs(lm, ids, [list(r.tokens) for r in found]))
    lengths = torch.tensor([len(r.tokens) for r in found])
    with torch.no_grad():
        logits = lm.network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    entropy = -(logits.exp() * logits).sum()
    assert -(log_p / lengths).mean() < 2 * entropy + 0.5


def test_the_same_seed_draws_the_same(lm: CausalLM) -> None:
    again = [sample(lm, PROMPTS, 3, temperature=1.0, max_tokens=8, seed=s) for s in (1, 1, 2)]
    assert again[0] == again[1]
    assert again[0] != again[2]


def test_log_probabilities_are_those_of_the_loss(lm: CausalLM) -> None:
    ids, answer = lm.prompt_ids("a good"), [5, 9, 0]
    labels = torch.tensor([[-100] * len(ids) + answer])
    with torch.no_grad():
        loss = lm.network(torch.tensor([ids + answer]), labels=labels).loss
    (found,) = log_probs(lm, ids, [answer])
    assert found == pytest.approx(-3 * float(loss), abs=1e-4)
    # Beside a longer one: padding counts nothing.
    both = log_probs(lm, ids, [answer, [5, 9, 7, 7, 0]])
    assert both[0] == pytest.approx(found, abs=1e-4)


def test_modes_are_complete_and_in_order(lm: CausalLM) -> None:
    modes = likeliest(lm, "a good", 4, 10)
    assert modes and all(mode[-1] == 0 and 0 not in mode[:-1] for mode in modes)
    log_p = log_probs(lm, lm.prompt_ids("a good"), [list(mode) for mode in modes])
    assert log_p == sorted(log_p, reverse=True)


def _untouched(lm: CausalLM) -> Untouched:
    found = find_modes(lm, PROMPTS, 3, 10)
    return Untouched(lm, lm, found["modes"], found["log_probs"], lambda texts: torch.eye(4).numpy())


def _sampled(texts: list[str]) -> Sampled:
    vectors = torch.eye(4)[: len(texts)].numpy()
    responses = [Response(text, (5, 0), True) for text in texts]
    return Sampled([responses] * len(PROMPTS), [vectors] * len(PROMPTS))


def test_the_untouched_model_measured_by_itself(lm: CausalLM) -> None:
    values = measure(lm, PROMPTS, _sampled([" a b", " c d"]), _untouched(lm), None, exact=True)
    assert values["kl"] == [0.0] * 3
    assert values["coverage"] == [1.0] * 3
    assert values["semantic_diversity"] == [1.0] * 3
    assert values["distinct_1"] == [1.0] * 3
    assert values["length_words"] == [2.0] * 3
    assert "matched_distinct_2" not in values


def test_another_model_diverges_and_forgets_modes(lm: CausalLM, tmp_path: Path) -> None:
    size = Size(vocabulary=300, hidden=16, layers=2, heads=2, intermediate=32)
    torch.manual_seed(1)
    other = saved(_model(lm.tokenizer, size), lm.tokenizer, tmp_path)
    values = measure(other, PROMPTS, _sampled([" a b", " c d"]), _untouched(lm), None, exact=True)
    assert all(value is not None and value > 0.1 for value in values["kl"])
    # By hand, for the first prompt: two positions, both responses alike.
    ids = lm.prompt_ids(PROMPTS[0])
    rows = torch.tensor([[*ids, 5, 0]])
    with torch.no_grad():
        p, q = (m.network(rows).logits[0, len(ids) - 1 : -1].log_softmax(-1) for m in (other, lm))
    assert values["kl"][0] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-3)
    assert means(values)["coverage"] < 1.0


def test_diversity_at_matched_length(lm: CausalLM, tmp_path: Path) -> None:
    """Own responses of 2, 2 and 9 words against 2, 2 and 4: two pairs are of alike length."""
    long = " " + " ".join("abcdefghi")
    own, before = _sampled([" a b", " a b", long]), _sampled([" a b", " c d", " a b c d"])
    before.save(tmp_path / "kept.npz")
    values = measure(
        lm, PROMPTS, own, _untouched(lm), Kept.load(tmp_path / "kept.npz"), exact=False
    )
    # One different pair of words of two against two of two; vectors are orthogonal in both.
    assert values["matched_distinct_2"] == [-0.5] * 3
    assert values["matched_semantic_diversity"] == [0.0] * 3
    assert "kl" not in values


def test_perplexity_is_of_tokens_not_of_responses(lm: CausalLM) -> None:
    values = measure(lm, PROMPTS, _sampled([" film", " man ."]), _untouched(lm), None, exact=False)
    ids = lm.prompt_ids(PROMPTS[0])
    rows = [[*lm.prompt_ids(text), 0] for text in (" film", " man .")]
    nats = -sum(log_probs(lm, ids, rows))
    assert values["perplexity"][0] == pytest.approx(math.exp(nats / sum(map(len, rows))), rel=1e-4)


def test_the_reward_reads_the_whole_sentence() -> None:
    alone, praised = rewards("", [" film"]), rewards("a wonderful", [" film"])
    assert alone == [0.0]
    assert praised[0] > 0.5


def test_values_are_plain_numbers(lm: CausalLM) -> None:
    values = measure(lm, PROMPTS, _sampled([" a b", " c d"]), _untouched(lm), None, exact=True)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
