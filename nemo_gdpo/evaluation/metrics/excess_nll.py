"""Perplexity, excess NLL and KL of a prompt's responses, and the models' scores behind them.

The excess NLL of a token is -log q - H(q): its NLL under the reference q beyond the mean of what q
itself would sample there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nemo_gdpo.config.model_files import read_model_config
from nemo_gdpo.config.stop_tokens import stop_token_ids
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.data import PairEncoder
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.divergence import (
    CausalModel,
    SequenceScores,
    TokenSequence,
    score_batch,
)
from nemo_gdpo.evaluation.models import directory_fingerprint, load_tokenizer
from nemo_gdpo.generation.rows import Row
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.arrays import Array, Cache, compute_cached, content_key, length_batches

KEY = "evaluation.reference_model"
_COMPARED = 32
"""Responses whose stored tokens are read back with the reference's tokenizer."""
_SAME_TEXT = 0.5
"""Share of them that has to give the stored text; some never do (half a character at the end)."""


@dataclass
class ScoringModel:
    """A model that scores tokens: identity and tokenizer now, weights once they are needed."""

    what: str
    directory: Path
    fingerprint: str
    weights: str
    encoder: PairEncoder
    model: CausalModel | None = field(default=None, repr=False)
    """Loaded when the cache does not hold all that is asked for."""

    def load(self, device: torch.device) -> CausalModel:
        if self.model is None:
            self.model = CausalModel(self.what, self.directory, device)
        return self.model


def open_model(what: str, directory: Path) -> ScoringModel:
    """Identify a model and read its tokenizer; its weights are loaded when they are needed.

    Raises:
        UserError: its files cannot be read.
    """
    tokenizer = load_tokenizer(what, directory)
    encoder = PairEncoder(tokenizer, stop_token_ids=stop_token_ids(directory))
    return ScoringModel(
        what,
        directory,
        directory_fingerprint(directory),
        weights_fingerprint(directory),
        encoder,
    )


def refuse_other_tokens(policy: ScoringModel, reference: ScoringModel) -> None:
    """KL compares two distributions over the same tokens.

    Raises:
        UserError: the tokenizers' vocabularies differ.
    """
    own, other = (item.encoder.tokenizer.get_vocab() for item in (policy, reference))
    if own != other:
        raise UserError(
            f"{policy.what}: its tokenizer has other tokens than that of {KEY}, so their "
            "distributions cannot be compared; give the reference that the model was trained from"
        )


def refuse_other_model(policy: ScoringModel, model_hash: str) -> None:
    """The policy's distribution is that of the responses only if it is the model that gave them.

    Raises:
        UserError: it has other weights than the rows say.
    """
    if policy.weights != model_hash and not model_hash.startswith("server:"):
        raise UserError(
            f"{policy.what}: the weights of {policy.directory} (hash {policy.weights[:12]}) are "
            f"not those that gave the responses ({model_hash[:12]}); give the model they were "
            "sampled from"
        )


# --- tokens ---------------------------------------------------------------------------------


def token_sequences(row: Row, encoder: PairEncoder) -> list[TokenSequence | None]:
    """Tokens read and sampled by the model, for each response; None for a response without a token.

    Stored ids are taken as they are. Rows without them are tokenised as training does it, with the
    end token after a response that stopped by itself and not at a stop text. That need not give the
    sampled tokens back.

    Raises:
        UserError: the prompt cannot be tokenised; with file and line.
    """
    try:
        prompt = row.prompt_token_ids or encoder.encode_prompt(_prompt(row))
        ids = row.token_ids
        if ids is None:
            end = (
                encoder.text_end_token_id
                if isinstance(row.prompt, str)
                else encoder.chat_end_token_id
            )
            plain = [
                encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                for text in row.outputs
            ]
            ended = [
                reason == "stop" and not by_text
                for reason, by_text in zip(row.finish_reasons, row.stopped_by_text, strict=True)
            ]
            ids = tuple(
                (*own, end) if complete else tuple(own)
                for own, complete in zip(plain, ended, strict=True)
            )
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from None
    return [TokenSequence(tuple(prompt), tuple(own)) if own else None for own in ids]


def _prompt(row: Row) -> Any:
    return row.prompt


def check_tokens(rows: Sequence[Row], reference: ScoringModel) -> None:
    """Refuse stored tokens that the reference reads as another text.

    Raises:
        UserError: an id outside of the vocabulary, or texts that differ.
    """
    same = compared = 0
    config = read_model_config(reference.directory) or {}
    # The embedding may have more rows than the tokenizer has tokens, and a model may sample them.
    vocabulary = max(len(reference.encoder.tokenizer), int(config.get("vocab_size", 0)))
    for row in rows:
        if row.token_ids is None:
            continue
        for ids, text in zip(row.token_ids, row.outputs, strict=True):
            if max((*ids, *(row.prompt_token_ids or ())), default=0) >= vocabulary:
                raise UserError(
                    f"{row.where}: it has tokens beyond the {vocabulary} of {KEY}; give the "
                    "reference of the model that was sampled from"
                )
            if compared < _COMPARED and ids:
                decoded = reference.encoder.tokenizer.decode(list(ids), skip_special_tokens=True)
                same += decoded.strip() == text.strip()
                compared += 1
    if compared and same < _SAME_TEXT * compared:
        raise UserError(
            f"{KEY}: its tokenizer reads the sampled tokens as other texts than the rows hold "
            f"({compared - same} of {compared}); give the reference of the model that was sampled "
            "from"
        )


# --- scores ---------------------------------------------------------------------------------


def score_rows(
    rows: Sequence[Row],
    sampling: SamplingPoint,
    reference: ScoringModel,
    policy: ScoringModel | None,
    cache: Cache,
    device: torch.device,
    batch_tokens: int,
    date: str,
) -> list[list[SequenceScores | None]]:
    """Scores of every response, row by row; None for a response without a token.

    Args:
        rows: of one point.
        sampling: of the point.
        reference: q.
        policy: what the responses were sampled from; None leaves the KL out.
        cache: of responses that were scored before.
        device: to run on.
        batch_tokens: of one forward pass.
        date: ISO date that the prompts bore when they were answered, if the template has a clock.
    """
    encoder = reference.encoder.on(date)
    per_row = [token_sequences(row, encoder) for row in rows]
    flat = [item for items in per_row for item in items if item is not None]
    identity = [
        reference.fingerprint,
        None if policy is None else policy.fingerprint,
        None if policy is None else sampling.label(),
    ]

    def score(batch: Sequence[TokenSequence]) -> list[Array]:
        ours = None if policy is None else policy.load(device)
        scores = score_batch(reference.load(device), ours, batch, sampling)
        return [score.to_array() for score in scores]

    arrays = compute_cached(
        cache,
        flat,
        lambda item: content_key("surprise", identity, item.prompt_ids, item.response_ids),
        score,
        length_batches(lambda item: len(item.prompt_ids) + len(item.response_ids), batch_tokens),
        label="reference",
    )
    scored = iter(SequenceScores.from_array(array) for array in arrays)
    return [[None if item is None else next(scored) for item in items] for items in per_row]


# --- metrics: nats are summed over a prompt's tokens before they are divided ------------------


def perplexity(scores: Sequence[SequenceScores]) -> float | None:
    """exp of the mean -log q over all tokens of a prompt's responses; None without a token."""
    tokens = sum(score.tokens for score in scores)
    return _exp(_nll(scores) / tokens) if tokens else None


def excess_nll(scores: Sequence[SequenceScores]) -> float | None:
    """Mean of -log q - H(q) over all tokens of a prompt's responses; None without a token."""
    tokens = sum(score.tokens for score in scores)
    entropy = sum(score.reference_entropy for score in scores)
    return (_nll(scores) - entropy) / tokens if tokens else None


def kl(scores: Sequence[SequenceScores]) -> float | None:
    """Exact KL(p | q) summed along a response, mean over responses; None without the policy."""
    exact = _exact(scores)
    return sum(exact) / len(exact) if exact else None


def kl_token(scores: Sequence[SequenceScores]) -> float | None:
    """Exact KL(p | q) per token, over all tokens of a prompt's responses."""
    exact = _exact(scores)
    return sum(exact) / sum(score.tokens for score in scores) if exact else None


def kl_sampled(scores: Sequence[SequenceScores]) -> float | None:
    """Mean of log p(y) - log q(y) over the responses that p can give."""
    ratios = log_ratios(scores)
    return sum(ratios) / len(ratios) if ratios else None


def kl_k3(scores: Sequence[SequenceScores]) -> float | None:
    """Mean of e^r - 1 - r over the responses that p can give; None where a float cannot hold it."""
    ratios = log_ratios(scores)
    if not ratios:
        return None
    mean = sum(map(k3_estimate, ratios)) / len(ratios)
    return mean if math.isfinite(mean) else None


def log_ratios(scores: Sequence[SequenceScores]) -> list[float]:
    """log p(y) - log q(y) of the responses that p, cut by the sampling, can give."""
    return [
        score.policy_logp - score.reference_logp
        for score in scores
        if score.policy_logp is not None and math.isfinite(score.policy_logp)
    ]


def _nll(scores: Sequence[SequenceScores]) -> float:
    return -sum(score.reference_logp for score in scores)


def _exact(scores: Sequence[SequenceScores]) -> list[float]:
    return [score.exact_kl for score in scores if score.exact_kl is not None]


def k3_estimate(log_ratio: float) -> float:
    """e^r - 1 - r with r = -(log p - log q); infinite where a float cannot hold it."""
    r = -log_ratio
    return _exp(r) - 1.0 - r


def _exp(value: float) -> float:
    return math.exp(value) if value < 700.0 else math.inf
