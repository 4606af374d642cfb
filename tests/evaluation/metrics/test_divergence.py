"""Perplexity and KL against plain transformers and torch, and against enumeration."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics import divergence
from nemo_gdpo.evaluation.metrics.divergence import (
    CausalModel,
    SequenceScores,
    TokenSequence,
    sampling_log_probs,
    score_batch,
)
from nemo_gdpo.evaluation.metrics.excess_nll import k3_estimate
from nemo_gdpo.generation.types import SamplingPoint
from tests.support.models import save_model

PLAIN = SamplingPoint(1.0, 1.0, 0.0, 0)
CPU = torch.device("cpu")
BATCH = [
    TokenSequence((3, 5, 7), (11, 2, 9, 1)),
    TokenSequence((4,), (6,)),
    TokenSequence((8, 8, 1, 20, 14), (30, 31, 32, 33, 34, 35, 1)),
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return save_model(root / "reference"), save_model(root / "policy", seed=8)


@pytest.fixture(scope="module")
def models(directories: tuple[Path, Path]) -> tuple[CausalModel, CausalModel]:
    reference, policy = (CausalModel("setting", path, CPU) for path in directories)
    return reference, policy


def log_softmax_along(directory: Path, item: TokenSequence, temperature: float = 1.0) -> Tensor:
    """[response tokens, vocabulary] from transformers, one sequence at a time, no padding."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([[*item.prompt_ids, *item.response_ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(item.prompt_ids) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("chunk", [1 << 24, 1500])
def test_sums_are_those_of_plain_transformers(
    directories: tuple[Path, Path],
    models: tuple[CausalModel, CausalModel],
    temperature: float,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batched with padding, in chunks of 2 positions or in one, against one sequence at a time."""
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", chunk)
    scores = score_batch(*models, BATCH, SamplingPoint(temperature, 1.0, 0.0, 0))
    for item, found in zip(BATCH, scores, strict=True):
        log_q = log_softmax_along(directories[0], item)
        log_p = log_softmax_along(directories[1], item, temperature)
        index = torch.tensor(item.response_ids)[:, None]
        assert found.tokens == len(item.response_ids)
        assert found.reference_logp == pytest.approx(float(log_q.gather(1, index).sum()), abs=1e-4)
        assert found.policy_logp == pytest.approx(float(log_p.gather(1, index).sum()), abs=1e-4)
        entropy = float(torch.distributions.Categorical(logits=log_q).entropy().sum())
        assert found.reference_entropy == pytest.approx(entropy, abs=1e-4)
        kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
        assert found.exact_kl == pytest.approx(float(kl), abs=1e-4)
        assert found.exact_kl is not None
        assert found.exact_kl > 0.05


def test_label_log_probs_are_those_of_the_whole_distribution(
    models: tuple[CausalModel, CausalModel],
) -> None:
    """Training's function against a plain log-softmax, to 1e-6 a token and in every column."""
    reference, policy = models
    with torch.inference_mode():
        hidden = reference.hidden(BATCH)
        labels = torch.tensor([token for item in BATCH for token in item.response_ids])
        log_q = reference.logits(hidden).log_softmax(-1)
        whole = log_q.gather(-1, labels[:, None])[:, 0]
        assert torch.allclose(reference.label_logps(hidden, labels), whole, rtol=1e-6, atol=1e-6)
    found = score_batch(reference, policy, BATCH, PLAIN)
    sums = [
        float(part.double().sum()) for part in whole.split([len(i.response_ids) for i in BATCH])
    ]
    assert [s.reference_logp for s in found] == pytest.approx(sums, rel=1e-6)


def test_a_model_does_not_diverge_from_itself(models: tuple[CausalModel, CausalModel]) -> None:
    reference, _ = models
    for found in score_batch(reference, reference, BATCH, PLAIN):
        assert found.exact_kl == pytest.approx(0.0, abs=1e-6)
        assert found.policy_logp == pytest.approx(found.reference_logp, abs=1e-6)
        # The same function of the same states: not a bit between them, so that no minus shows.
        assert found.policy_logp == found.reference_logp
    alone = score_batch(reference, None, BATCH, PLAIN)
    assert [s.exact_kl for s in alone] == [s.policy_logp for s in alone] == [None] * 3


def test_estimates_are_unbiased(models: tuple[CausalModel, CausalModel]) -> None:
    """Over all 600 responses of one token, weighted by p: the sampled estimate, k3 and the exact
    KL have the same mean."""
    reference, _ = models
    vocabulary = reference.vocabulary
    singles = [TokenSequence((3, 5), (token,)) for token in range(vocabulary)]
    scores = [s for n in range(0, vocabulary, 64) for s in score(models, singles[n : n + 64])]
    probability = [math.exp(s.policy_logp) for s in scores]  # type: ignore[arg-type]
    assert sum(probability) == pytest.approx(1.0, abs=1e-5)
    ratios = [s.policy_logp - s.reference_logp for s in scores]  # type: ignore[operator]
    exact = scores[0].exact_kl
    sampled = sum(p * r for p, r in zip(probability, ratios, strict=True))
    k3 = sum(p * k3_estimate(r) for p, r in zip(probability, ratios, strict=True))
    assert sampled == pytest.approx(exact, abs=1e-5)
    assert k3 == pytest.approx(exact, abs=1e-5)
    # The excess of the reference's own text is 0 in the mean.
    own = [
        s
        for n in range(0, vocabulary, 64)
        for s in score_batch(reference, reference, singles[n : n + 64], PLAIN)
    ]
    excess = sum(
        math.exp(s.reference_logp) * (-s.reference_logp - s.reference_entropy) for s in own
    )
    assert excess == pytest.approx(0.0, abs=1e-5)


def score(
    models: tuple[CausalModel, CausalModel], items: list[TokenSequence]
) -> list[SequenceScores]:
    return score_batch(*models, items, PLAIN)


def test_chain_rule(models: tuple[CausalModel, CausalModel]) -> None:
    """Exact KL per token sums up to that of whole responses. With top-k 3 there are 9 responses of
    two tokens: enumerate them."""
    sampling = SamplingPoint(1.0, 1.0, 0.0, 3)
    reference, policy = models
    ids = torch.tensor([[3, 5]])
    with torch.no_grad():
        first = policy.logits(policy._model.base_model(input_ids=ids).last_hidden_state[0, -1:])
    tops = first.topk(3).indices[0].tolist()
    pairs = []
    for token in tops:
        with torch.no_grad():
            state = policy._model.base_model(input_ids=torch.tensor([[3, 5, token]]))
            second = policy.logits(state.last_hidden_state[0, -1:])
        pairs += [(token, other) for other in second.topk(3).indices[0].tolist()]
    scores = score_batch(reference, policy, [TokenSequence((3, 5), p) for p in pairs], sampling)
    probability = [math.exp(s.policy_logp) for s in scores]  # type: ignore[arg-type]
    assert sum(probability) == pytest.approx(1.0, abs=1e-5)
    whole = sum(
        p * (s.policy_logp - s.reference_logp)  # type: ignore[operator]
        for p, s in zip(probability, scores, strict=True)
    )
    by_token = sum(p * s.exact_kl for p, s in zip(probability, scores, strict=True))  # type: ignore[operator]
    assert by_token == pytest.approx(whole, abs=1e-4)


# --- what a sampler draws from ---------------------------------------------------------------

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]])


def drawn(**changes: float) -> list[float]:
    values = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0} | changes
    sampling = SamplingPoint(**values)  # type: ignore[arg-type]
    return [
        round(p, 6) for p in sampling_log_probs(PROBABILITIES.log(), sampling).exp()[0].tolist()
    ]


def test_sampling_by_hand() -> None:
    assert drawn() == [0.5, 0.25, 0.125, 0.0625, 0.0625]
    assert drawn(temperature=0.0) == [1.0, 0.0, 0.0, 0.0, 0.0]
    # Squared: 64, 16, 4, 1, 1 of 86.
    assert drawn(temperature=0.5) == pytest.approx(
        [64 / 86, 16 / 86, 4 / 86, 1 / 86, 1 / 86], abs=1e-6
    )
    assert drawn(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=1e-6)
    # 0.5 alone is below 0.7, 0.5 + 0.25 reaches it.
    assert drawn(top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=1e-6)
    assert drawn(top_p=0.01) == [1.0, 0.0, 0.0, 0.0, 0.0]
    # At least 0.2 of the likeliest: 0.1.
    assert drawn(min_p=0.2) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0, 0], abs=1e-6)
    # Top-p is taken of what top-k left: 2/3 reaches 0.6 by itself.
    assert drawn(top_k=2, top_p=0.6) == [1.0, 0.0, 0.0, 0.0, 0.0]
    # Temperature comes first: at 0.5 the third has 4/64 of the likeliest.
    assert drawn(temperature=0.5, min_p=0.2) == pytest.approx([0.8, 0.2, 0, 0, 0], abs=1e-6)


def test_kl_is_finite_for_tokens_outside_the_sampling(
    models: tuple[CausalModel, CausalModel],
) -> None:
    for found in score_batch(*models, BATCH, SamplingPoint(1.0, 1.0, 0.0, 1)):
        assert found.policy_logp == -math.inf
        assert found.exact_kl is not None
        assert math.isfinite(found.exact_kl)
        assert SequenceScores.from_array(found.to_array()) == found


def test_k3_by_hand() -> None:
    """r = log q - log p."""
    assert k3_estimate(0.5) == pytest.approx(0.106531, abs=1e-6)
    assert k3_estimate(-3.0) == pytest.approx(16.085537, abs=1e-6)
    assert k3_estimate(0.0) == 0.0
    assert k3_estimate(-1000.0) == math.inf


# --- models ---------------------------------------------------------------------------------


def test_gemma_2s_soft_caps_count(tmp_path: Path) -> None:
    """The output layer applied to a few positions, against the whole model."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_logit_softcapping=0.5,
        sliding_window=4,
        query_pre_attn_scalar=8,
    )
    model = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    item = TokenSequence((3, 5, 7, 1, 2, 3), (11, 2, 9))
    (found,) = score_batch(CausalModel("x", tmp_path, CPU), None, [item], PLAIN)
    with torch.no_grad():
        logits = model(torch.tensor([[*item.prompt_ids, *item.response_ids]])).logits[0, 5:-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(item.response_ids)[:, None]).sum()
    assert found.reference_logp == pytest.approx(float(expected), abs=1e-5)
    assert float(logits.abs().max()) <= 0.5


def test_a_head_that_is_not_known_is_refused(
    directories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CausalModel.logits
    monkeypatch.setattr(CausalModel, "logits", lambda self, hidden: 1.01 * plain(self, hidden))
    with pytest.raises(UserError, match=r"setting: .* not built in"):
        CausalModel("setting", directories[0], CPU)


def test_a_head_with_a_bias_is_refused(
    directories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-prob of a label comes from the head's weight alone."""
    plain = LlamaForCausalLM.get_output_embeddings

    def biased(self: LlamaForCausalLM) -> torch.nn.Module:
        head = plain(self)
        if head.bias is None:
            head.bias = torch.nn.Parameter(torch.arange(head.weight.shape[0]) / 100.0)
        return head

    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", biased)
    with pytest.raises(UserError, match=r"setting: .* not built in"):
        CausalModel("setting", directories[0], CPU)


def test_missing_weights_are_refused(directories: tuple[Path, Path], tmp_path: Path) -> None:
    """transformers fills them with random numbers and a warning."""
    model = LlamaForCausalLM.from_pretrained(directories[0])
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"setting: .* lacks weights .*layers\.1\.mlp"):
        CausalModel("setting", tmp_path, CPU)
