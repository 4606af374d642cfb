"""Measuring: the models and rewards of an evaluation, and a value for each metric and prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nemo_gdpo.config.evaluation import EvaluateConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.failures import Failures
from nemo_gdpo.evaluation.metrics.divergence import SequenceScores
from nemo_gdpo.evaluation.metrics.diversity import cosine_similarity
from nemo_gdpo.evaluation.metrics.encoder import Encoder, embed_rows, encoder_directory
from nemo_gdpo.evaluation.metrics.excess_nll import (
    ScoringModel,
    check_tokens,
    log_ratios,
    open_model,
    refuse_other_model,
    refuse_other_tokens,
    score_rows,
)
from nemo_gdpo.evaluation.metrics.metric import PromptResponses
from nemo_gdpo.evaluation.metrics.novelty import (
    by_classifier,
    by_cosine,
    cached_classifier,
    partition,
)
from nemo_gdpo.evaluation.metrics.rewards import Answer, ModelReward, Reward, build_reward
from nemo_gdpo.evaluation.metrics.safety import safety_of
from nemo_gdpo.evaluation.metrics.table import metrics_of, offered
from nemo_gdpo.evaluation.metrics.validity import check_response, high_type_token_ratio
from nemo_gdpo.evaluation.metrics.words import words
from nemo_gdpo.evaluation.models import resolve_device
from nemo_gdpo.evaluation.results import Unscored
from nemo_gdpo.evaluation.rows import Generations
from nemo_gdpo.generation.rows import Row
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.progress import progress_bar

Values = dict[str, list[float | None]]
"""Metric -> one value a prompt; None where it is not defined."""
UNREAD_RESPONSES = 0.5
"""Where the encoder cannot read this share of a prompt's responses, it says nothing of them."""
RowScores = list[list[SequenceScores | None]]
"""Prompt -> response; None for a response without a token."""


@dataclass(frozen=True)
class Measured:
    """Measured values of one point."""

    values: Values
    counts: dict[str, int]
    rewards: dict[str, list[list[float | None]]]
    """Reward -> prompt -> response; None where it could not be scored. A failed one is absent."""
    type_token_ratio: float | None
    """See `nemo_gdpo.evaluation.metrics.validity.high_type_token_ratio`."""
    unscored: list[Unscored]
    """The responses behind those None."""
    prompts: Sequence[PromptResponses] = ()
    """What the values were computed from."""


class Evaluator:
    """Everything that measures, each model opened once.

    Args:
        config: what is wanted.
        cache: of what was computed before.
        failures: gets what could not be measured.
        date: ISO date that templates with a clock write.

    Raises:
        UserError: a model or a reward cannot be had.
    """

    def __init__(self, config: EvaluateConfig, cache: Cache, failures: Failures, date: str) -> None:
        evaluation, self._date = config.evaluation, date
        self._evaluation, self._cache, self._failures = evaluation, cache, failures
        self._device = resolve_device(evaluation.device)
        self._metrics = metrics_of(evaluation)
        tokens = evaluation.batch_tokens
        self._rewards: list[Reward] = [
            build_reward(reward, cache, self._device, tokens, date) for reward in evaluation.rewards
        ]
        self._rewards += safety_of(evaluation.safety, cache, self._device, tokens)
        self._encoder: Encoder | None = None
        if evaluation.encoder is not None:
            self._encoder = Encoder(encoder_directory(evaluation.encoder), self._device)
        self._classifier: Callable[[str, str], float] | None = None
        if evaluation.novelty.classifier is not None:
            path = Path(evaluation.novelty.classifier)
            self._classifier = cached_classifier(path, cache, self._device)
        self._reference: ScoringModel | None = None
        if evaluation.reference_model is not None:
            path = Path(evaluation.reference_model)
            self._reference = open_model("evaluation.reference_model", path)

    @property
    def has_clock(self) -> bool:
        """Whether a template that is applied here writes the day."""
        return any(isinstance(reward, ModelReward) and reward.has_clock for reward in self._rewards)

    def measure(
        self, run: Generations, policy: ScoringModel | None
    ) -> dict[SamplingPoint, Measured]:
        """Every point of a run.

        Args:
            run: aligned with the others.
            policy: see `policy_of`.
        """
        return {
            sampling: self._measure_point(run, sampling, rows, policy)
            for sampling, rows in run.points.items()
        }

    def policy_of(self, run: Generations) -> ScoringModel | None:
        """The model that gave the responses, where it is known: the reference, or a setting.

        Raises:
            UserError: the run's model is not the one that gave its responses, or its tokens are not
                those of the reference.
        """
        reference = self._reference
        if reference is None:
            return None
        path = self._evaluation.models.get(run.name)
        if run.is_verbalised:
            if path is not None:
                raise UserError(
                    f"evaluation.models.{run.name}: its answers were verbalised several at a time, "
                    "not sampled one by one, so they have no KL; leave it out"
                )
            return None
        if path is None:
            return reference if run.model_hash == reference.weights else None
        policy = open_model(f"evaluation.models.{run.name}", Path(path))
        refuse_other_model(policy, run.model_hash)
        refuse_other_tokens(policy, reference)
        # The same files: one copy of the weights is enough.
        return reference if policy.fingerprint == reference.fingerprint else policy

    def _measure_point(
        self,
        run: Generations,
        sampling: SamplingPoint,
        rows: Sequence[Row],
        policy: ScoringModel | None,
    ) -> Measured:
        where = f"{run.name} at {sampling.label()}"
        attempt = self._failures.attempt
        unscored: list[Unscored] = []
        rewards: dict[str, list[list[float | None]]] = {}
        for reward in self._rewards:
            scores = attempt(
                f"reward.{reward.name} of {where}", partial(_scores_of, reward, rows, unscored)
            )
            if scores is not None:
                rewards[reward.name] = scores
        embeddings = attempt(f"embeddings of {where}", lambda: self._embeddings(rows))
        scored = attempt(
            f"perplexity and divergence of {where}",
            lambda: self._scores(rows, sampling, policy, run.date or self._date),
        )
        known = offered(self._evaluation) - (set() if policy is not None else {"policy"})
        metrics = [metric for metric in self._metrics if metric.needs in known]
        values: Values = {metric.name: [] for metric in metrics}
        prompts = []
        unread = self._unread_by_encoder(rows)
        with progress_bar(total=len(rows), unit="prompt", label="metrics", enabled=True) as bar:
            for index, row in enumerate(rows):
                vectors = None if embeddings is None else embeddings[index]
                # Of text that the encoder cannot read its vectors say nothing.
                legible = sum(unread[index]) < UNREAD_RESPONSES * len(row.outputs)
                prompt = self._prompt_responses(
                    row,
                    {name: own[index] for name, own in rewards.items()},
                    vectors if legible else None,
                    [] if scored is None else scored[index],
                )
                prompts.append(prompt)
                for metric in metrics:
                    values[metric.name].append(metric.function(prompt))
                bar.update(1)
        return Measured(
            values=values,
            counts={
                **_count_responses(prompts),
                **self._count_cut(rows),
                **self._count_unread(rows, unread),
                **_count_scores(rows, scored, with_policy=policy is not None),
                **Counter(f"unscored_by_{item.reward}" for item in unscored),
            },
            rewards=rewards,
            type_token_ratio=high_type_token_ratio(text for row in rows for text in row.outputs),
            unscored=unscored,
            prompts=prompts,
        )

    def part_of(self, prompt: PromptResponses, places: Sequence[int]) -> PromptResponses:
        """Some responses to a prompt, in this order, for metrics of diversity.

        Args:
            prompt: as measured.
            places: of the responses that are kept.
        """
        row, vectors = prompt.row, prompt.embeddings_KD
        part = replace(
            row,
            outputs=tuple(row.outputs[i] for i in places),
            finish_reasons=tuple(row.finish_reasons[i] for i in places),
            stopped_by_text=tuple(row.stopped_by_text[i] for i in places),
            token_ids=None if row.token_ids is None else tuple(row.token_ids[i] for i in places),
            broken=None if row.broken is None else tuple(row.broken[i] for i in places),
        )
        kept = None if vectors is None else vectors[list(places)]
        return self._prompt_responses(part, {}, kept, [])

    def _prompt_responses(
        self,
        row: Row,
        rewards: Mapping[str, Sequence[float | None]],
        embeddings_KD: npt.NDArray[np.float32] | None,
        scores: Sequence[SequenceScores | None],
    ) -> PromptResponses:
        comparable_KD = embeddings_KD if len(row.outputs) > 1 else None
        cosine_KK = None if comparable_KD is None else cosine_similarity(comparable_KD)
        return PromptResponses(
            row=row,
            checks=[check_response(text) for text in row.outputs],
            rewards=rewards,
            embeddings_KD=comparable_KD,
            cosine_KK=cosine_KK,
            classes=self._failures.attempt_once(
                "classes of responses", lambda: self._classes(row.outputs, cosine_KK)
            ),
            scores=[score for score in scores if score is not None],
        )

    def _classes(
        self, outputs: Sequence[str], cosine_KK: npt.NDArray[np.float64] | None
    ) -> list[int] | None:
        if len(outputs) < 2:
            return None
        if self._classifier is not None:
            return partition(len(outputs), by_classifier(outputs, self._classifier))
        if cosine_KK is None:
            return None
        threshold = self._evaluation.novelty.cosine
        return partition(len(outputs), by_cosine(outputs, cosine_KK, threshold))

    def _embeddings(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]] | None:
        if self._encoder is None:
            return None
        return embed_rows(rows, self._encoder, self._cache, self._evaluation.batch_tokens)

    def _scores(
        self,
        rows: Sequence[Row],
        sampling: SamplingPoint,
        policy: ScoringModel | None,
        date: str,
    ) -> RowScores | None:
        if self._reference is None:
            return None
        check_tokens(rows, self._reference)
        return score_rows(
            rows,
            sampling,
            self._reference,
            policy,
            self._cache,
            self._device,
            self._evaluation.batch_tokens,
            date,
        )

    def _count_cut(self, rows: Sequence[Row]) -> dict[str, int]:
        if self._encoder is None:
            return {}
        texts = [text for row in rows for text in row.outputs]
        return {"cut_by_encoder": self._encoder.count_cut(texts)}

    def _unread_by_encoder(self, rows: Sequence[Row]) -> list[list[bool]]:
        """Prompt -> response; nothing is unread without an encoder."""
        if self._encoder is None:
            return [[False] * len(row.outputs) for row in rows]
        flat = iter(self._encoder.unread([text for row in rows for text in row.outputs]))
        return [[next(flat) for _ in row.outputs] for row in rows]

    def _count_unread(
        self, rows: Sequence[Row], by_encoder: Sequence[Sequence[bool]]
    ) -> dict[str, int]:
        """Responses that a measure cannot read, by its name; measures that read all are absent."""
        found = {"unread_by_encoder": sum(map(sum, by_encoder))}
        answers = _answers(rows)
        for reward in self._rewards:
            found[f"unread_by_{reward.name}"] = sum(reward.unread(answers))
        return {name: count for name, count in found.items() if count}


def _answers(rows: Sequence[Row]) -> list[Answer]:
    return [
        Answer(row.prompt, text, f"{row.where}, response {number}")
        for row in rows
        for number, text in enumerate(row.outputs, start=1)
    ]


def _scores_of(
    reward: Reward, rows: Sequence[Row], unscored: list[Unscored]
) -> list[list[float | None]]:
    """Prompt -> response; what cannot be scored goes to `unscored`.

    Raises:
        UserError: no response can be scored.
    """
    found = reward.score(_answers(rows))
    reasons = [item.reason for item in found if not isinstance(item, float)]
    if reasons and len(reasons) == len(found):
        raise UserError(reasons[0])
    flat = iter(found)
    values: list[list[float | None]] = []
    for row in rows:
        own: list[float | None] = []
        for number, _ in enumerate(row.outputs, start=1):
            item = next(flat)
            if isinstance(item, float):
                own.append(item)
                continue
            own.append(None)
            unscored.append(Unscored(row.id, number, reward.name, item.reason))
        values.append(own)
    return values


def _count_responses(prompts: Sequence[PromptResponses]) -> dict[str, int]:
    checks = [check for prompt in prompts for check in prompt.checks]
    ends = Counter(f"finish.{why}" for prompt in prompts for why in prompt.row.finish_reasons)
    return {
        "responses": len(checks),
        "empty": sum(check.empty for check in checks),
        "unprintable": sum(check.unprintable for check in checks),
        "loop": sum(check.loop for check in checks),
        "invalid": sum(not check.valid for check in checks),
        "without_words": sum(words(t) is None for p in prompts for t in p.row.outputs),
        **ends,
    }


def _count_scores(
    rows: Sequence[Row], scores: RowScores | None, *, with_policy: bool
) -> dict[str, int]:
    if scores is None:
        return {}
    flat = [score for own in scores for score in own]
    known = [score for score in flat if score is not None]
    counts = {
        "without_tokens": len(flat) - len(known),
        "tokenised_anew": sum(len(row.outputs) for row in rows if row.token_ids is None),
    }
    if with_policy:
        counts["outside_sampling"] = len(known) - len(log_ratios(known))
    return counts
