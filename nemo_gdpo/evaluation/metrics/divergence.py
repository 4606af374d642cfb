"""NLL under the reference and divergence from it, token by token, in float32.

With q the reference's distribution at temperature 1 and p the distribution that was sampled from
(the policy's at the sampling's temperature, cut by min-p, top-k and top-p in vLLM's order), at the
positions t of a sampled response y, its end token included:

* NLL: -log q(y_t). Perplexity is exp of its mean.
* excess NLL: -log q(y_t) - H(q). Its mean is 0 for text that the reference itself sampled at
  temperature 1, whatever the text is about, and several nats for noise. That needs no baseline.
* exact: sum_v p(v) log(p(v) / q(v)) over the complete vocabulary. Summed along y it is an unbiased
  estimate of KL(policy | reference) of complete responses, by the chain rule, with far less spread
  than
* sampled: log p(y) - log q(y), and
* k3: e^r - 1 - r with r = log q(y) - log p(y): never negative and unbiased, too, but heavy-tailed;
  one response with r = 3 counts 16. ODPO's released code reports it, over prompt and response; here
  it covers the response alone.

Figures of a run at temperature 0.7 so include what the temperature alone changes: that is what was
sampled, and what a frontier has to compare.

Memory: hidden states of a batch, and logits of one chunk of positions for both models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.models import greatest_length, load_strictly, loading
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.logprobs import selected_logprobs

CHUNK_ELEMENTS = 1 << 24
"""Logits of a chunk: 64 MiB in float32, a few times over."""
_PROBE_TOLERANCE = 1e-4


def chunk_positions(vocabulary: int) -> int:
    """Positions whose logits exist at the same time."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


@dataclass(frozen=True)
class TokenSequence:
    """A response as the model sampled it."""

    prompt_ids: tuple[int, ...]
    """Tokens of the prompt, at least one."""
    response_ids: tuple[int, ...]
    """Tokens of the response, at least one."""


@dataclass(frozen=True)
class SequenceScores:
    """Sums over one response, in nats."""

    tokens: int
    reference_logp: float
    reference_entropy: float
    policy_logp: float | None = None
    """None without the policy; -inf where p cannot have given the response: rounding put a token
    just outside of top-p."""
    exact_kl: float | None = None

    def to_array(self) -> npt.NDArray[np.float64]:
        """Five numbers for the cache; NaN stands for None."""
        values = [self.tokens, self.reference_logp, self.reference_entropy]
        values += [math.nan if v is None else v for v in (self.policy_logp, self.exact_kl)]
        return np.array(values, dtype=np.float64)

    @classmethod
    def from_array(cls, array: npt.NDArray[Any]) -> SequenceScores:
        """The inverse of `to_array`."""
        tokens, logp, entropy, *rest = (float(value) for value in array)
        policy, exact = (None if math.isnan(value) else value for value in rest)
        return cls(int(tokens), logp, entropy, policy, exact)


class CausalModel:
    """A Hugging Face causal language model whose output layer can be applied to a few positions.

    Args:
        what: the setting, for messages.
        directory: with safetensors weights; they run in float32.
        device: to run on.

    Raises:
        UserError: it cannot be loaded, lacks weights, or does something between hidden states and
            logits that is not known here.
    """

    def __init__(self, what: str, directory: Path, device: torch.device) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        with loading(what, directory):
            config: Any = AutoConfig.from_pretrained(directory).get_text_config()
            fields = config.to_dict()
        # Only this attention applies Gemma 2's soft-cap.
        attention = "sdpa" if fields.get("attn_logit_softcapping") is None else "eager"
        self._model = load_strictly(
            what, directory, AutoModelForCausalLM, device, attn_implementation=attention
        )
        self.what = f"{what} ({directory})"
        self.positions = greatest_length(self._model)
        """Tokens that it reads at once; None where nothing limits it."""
        self._softcap: float | None = fields.get("final_logit_softcapping")
        self.device = device
        self.vocabulary: int = self._model.get_output_embeddings().weight.shape[0]
        self._check_head(what, directory)

    def _check_head(self, what: str, directory: Path) -> None:
        probe = torch.arange(min(4, self.vocabulary), device=self.device)[None]
        with torch.inference_mode():
            whole = self._model(input_ids=probe).logits[0].float()
            hidden = self._model.base_model(input_ids=probe).last_hidden_state[0]
            label_logp = whole.log_softmax(-1).gather(-1, probe[0][:, None])[:, 0]
            logits_differ = (self.logits(hidden) - whole).flatten()
            labels_differ = self.label_logps(hidden, probe[0]) - label_logp
            worst = float(torch.cat([logits_differ, labels_differ]).abs().max())
        if not worst <= _PROBE_TOLERANCE * max(1.0, float(whole.abs().max())):
            raise UserError(
                f"{what}: {directory} changes its logits in a way that is not built in (they "
                f"differ by {worst:.1e}); only Llama and Gemma models are known to be right"
            )

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """[T, vocabulary] of some positions, float32."""
        logits_TV: Tensor = self._model.get_output_embeddings()(hidden_TH).float()
        if self._softcap is not None:
            logits_TV = self._softcap * torch.tanh(logits_TV / self._softcap)
        return logits_TV

    def label_logps(self, hidden_TH: Tensor, label_T: Tensor) -> Tensor:
        """[T] log-probs of the labels, float32, by the function that training uses."""
        weight_VH = self._model.get_output_embeddings().weight
        return selected_logprobs(
            hidden_TH,
            weight_VH,
            label_T,
            chunk_tokens=chunk_positions(self.vocabulary),
            logit_softcap=self._softcap,
        ).label_T

    def hidden(self, batch: Sequence[TokenSequence]) -> Tensor:
        """[all response tokens, H]: the states that predict them, sequence after sequence."""
        whole = [(*item.prompt_ids, *item.response_ids) for item in batch]
        longest = max(map(len, whole))
        if self.positions is not None and longest > self.positions:
            raise UserError(
                f"{self.what}: a prompt with its response has {longest} tokens, and the model "
                f"reads {self.positions}; give one of a longer context, or sample shorter responses"
            )
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        for row, (item, tokens) in enumerate(zip(batch, whole, strict=True)):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            wanted[row, len(item.prompt_ids) - 1 : len(tokens) - 1] = True
        states: Tensor = self._model.base_model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        return states[wanted.to(self.device)]


def sampling_log_probs(logits_TV: Tensor, sampling: SamplingPoint) -> Tensor:
    """Log-probabilities that a sampler draws from, -inf for what it cannot draw.

    Temperature, then min-p, then top-k, then top-p, each on what the one before left: the order of
    vLLM. Temperature 0 leaves the likeliest token alone.

    Args:
        logits_TV: float32.
        sampling: the point of the sweep.
    """
    nothing = float("-inf")
    if sampling.temperature == 0.0:
        greedy = torch.full_like(logits_TV, nothing)
        return greedy.scatter_(-1, logits_TV.argmax(-1, keepdim=True), 0.0)
    logits = logits_TV / sampling.temperature
    if sampling.min_p > 0.0:
        floor = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < floor, nothing)
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, nothing)
    if sampling.top_p < 1.0:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # Kept until the ones before reach top_p; so the likeliest one always is.
        before = probabilities.cumsum(-1) - probabilities
        ordered = ordered.masked_fill(before >= sampling.top_p, nothing)
        logits = torch.full_like(logits, nothing).scatter_(-1, places, ordered)
    return logits.log_softmax(-1)


def score_batch(
    reference: CausalModel,
    policy: CausalModel | None,
    batch: Sequence[TokenSequence],
    sampling: SamplingPoint,
) -> list[SequenceScores]:
    """Score responses under the reference and, where it is given, the policy.

    Args:
        reference: q.
        policy: gives p; may be the reference itself. Both have the same tokens.
        batch: one forward pass of each model.
        sampling: how the responses were sampled.
    """
    with torch.inference_mode():
        hidden = reference.hidden(batch)
        own = hidden if policy is None or policy is reference else policy.hidden(batch)
        labels = torch.tensor([t for item in batch for t in item.response_ids])
        labels = labels.to(reference.device)
        step = chunk_positions(reference.vocabulary)
        parts = [
            _score_positions(
                reference,
                policy,
                hidden[start : start + step],
                own[start : start + step],
                labels[start : start + step],
                sampling,
            )
            for start in range(0, labels.numel(), step)
        ]
        columns = torch.cat(parts).double().cpu()
    # log p(y) may be -inf: see `SequenceScores`.
    if columns.isnan().any() or not columns[:, :2].isfinite().all():
        raise EvaluationError(
            f"{reference.what}{'' if policy is None else f' or {policy.what}'}: log-probabilities "
            "that are not numbers; the weights are at fault"
        )
    scores = []
    start = 0
    for item in batch:
        count = len(item.response_ids)
        logp, entropy, policy_logp, exact = columns[start : start + count].sum(0).tolist()
        start += count
        with_policy = policy is not None
        scores.append(
            SequenceScores(
                count,
                logp,
                entropy,
                policy_logp if with_policy else None,
                exact if with_policy else None,
            )
        )
    return scores


def _score_positions(
    reference: CausalModel,
    policy: CausalModel | None,
    hidden_TH: Tensor,
    own_TH: Tensor,
    label_T: Tensor,
    sampling: SamplingPoint,
) -> Tensor:
    """[T, 4]: log q(y), H(q), log p(y), KL(p | q); the last two are 0 without a policy.

    log q(y) is the number that training computes, by the same function, and so is log p(y) where
    the sampling changes nothing. H(q) and the KL are sums over the complete vocabulary, and other
    samplings cut p before it is normalised: those need the distributions themselves, of one chunk
    of positions.
    """
    logp_T = reference.label_logps(hidden_TH, label_T)
    log_q_TV = reference.logits(hidden_TH).log_softmax(-1)
    entropy_T = -(log_q_TV.exp() * log_q_TV).sum(-1)
    if policy is None:
        zero = torch.zeros_like(logp_T)
        return torch.stack([logp_T, entropy_T, zero, zero], dim=-1)
    log_p_TV = sampling_log_probs(policy.logits(own_TH), sampling)
    if sampling == SamplingPoint():
        own_logp_T = policy.label_logps(own_TH, label_T)
    else:
        own_logp_T = log_p_TV.gather(-1, label_T[:, None])[:, 0]
    # A token that p excludes adds nothing: 0 log 0 = 0.
    terms_TV = torch.where(log_p_TV > float("-inf"), log_p_TV.exp() * (log_p_TV - log_q_TV), 0.0)
    return torch.stack([logp_T, entropy_T, own_logp_T, terms_TV.sum(-1)], dim=-1)
