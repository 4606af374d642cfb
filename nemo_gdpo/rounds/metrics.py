"""The numbers of a round: of its answers when they are scored, of its training afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.config.rounds import ScoringConfig
from nemo_gdpo.evaluation.metrics.diversity import distinct_n, semantic_diversity
from nemo_gdpo.evaluation.metrics.encoder import Encoder, embed_texts, encoder_directory
from nemo_gdpo.evaluation.models import resolve_device
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.io.jsonl import read_objects
from nemo_gdpo.rounds.answers import PromptAnswers, Scored

METRICS = "metrics.json"
MET = "met/"
"""Beginning of the share of answers that meet one constraint."""


def measured(
    lines: Sequence[PromptAnswers], names: Sequence[str], settings: ScoringConfig, cache: Cache
) -> dict[str, Any]:
    """Means over answers, or over prompts for diversity; null where there is nothing to average.

    Args:
        lines: a round's scored answers.
        names: of the constraints.
        settings: the encoder of semantic diversity, and where it runs.
        cache: of embeddings.
    """
    answers = [answer for line in lines for answer in line.answers]
    complete = [answer for answer in answers if answer.complete]
    found: dict[str, Any] = {
        "prompts": len(lines),
        "answers": len(answers),
        "complete": mean([float(answer.complete) for answer in answers]),
        "reward": mean(_known(complete, lambda answer: answer.reward)),
        "score": mean(_known(complete, lambda answer: answer.score)),
    }
    if names:
        found["met"] = mean([float(not answer.broken) for answer in answers])
    for name in names:
        found[f"{MET}{name}"] = mean([float(name not in answer.broken) for answer in answers])
    found["entropy"] = mean([-value for value in _known(answers, lambda answer: answer.log_prob)])
    found["tokens"] = mean(_known(answers, lambda answer: answer.tokens))
    found["words"] = mean([float(len(answer.text.split())) for answer in complete])
    found["distinct_2"] = mean(_each(lines, lambda texts: distinct_n(texts, 2)))
    if settings.encoder is not None:
        found["semantic_diversity"] = mean(_semantic(lines, settings, cache))
    return found


def mean(values: Iterable[float]) -> float | None:
    """None of no values."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def _known(
    answers: Iterable[Scored], value_of: Callable[[Scored], float | int | None]
) -> list[float]:
    values = (value_of(answer) for answer in answers)
    return [float(value) for value in values if value is not None]


def _texts(line: PromptAnswers) -> list[str]:
    return [answer.text for answer in line.answers if answer.complete]


def _each(lines: Iterable[PromptAnswers], measure: Callable[[list[str]], float]) -> list[float]:
    """A value a prompt, where it has one."""
    found = []
    for line in lines:
        texts = _texts(line)
        if len(texts) > 1:
            try:
                found.append(measure(texts))
            except ValueError:  # no text has two words, say
                continue
    return found


def _semantic(lines: Sequence[PromptAnswers], settings: ScoringConfig, cache: Cache) -> list[float]:
    assert settings.encoder is not None
    encoder = Encoder(encoder_directory(settings.encoder), resolve_device(settings.device))
    several = [texts for line in lines if len(texts := _texts(line)) > 1]
    flat = iter(
        embed_texts(
            [text for texts in several for text in texts], encoder, cache, settings.batch_tokens
        )
    )
    return [semantic_diversity([next(flat) for _ in texts]) for texts in several]


def of_training(path: Path) -> dict[str, Any]:
    """Of a training run's metrics.jsonl: the first update has the model that the round began with.

    `kl` is the mean of log pi - log p_ref over the answers of that update: an estimate of
    KL(pi || p_ref) where they are the policy's own, and of nothing where pairs were picked.
    """
    if not path.is_file():
        return {}
    lines = [plain for _, _, plain in read_objects(path)]
    if not lines:
        return {}
    first, last = lines[0], lines[-1]
    found = {"updates": len(lines), "loss_first": first.get("loss"), "loss": last.get("loss")}
    if "gflownet/log_z" in last:
        found["log_z"] = last["gflownet/log_z"]
    sides = [(f"logps/{side}", f"reference_logps/{side}") for side in ("chosen", "rejected")]
    if all(name in first for pair in sides for name in pair):
        found["kl"] = sum(first[ours] - first[theirs] for ours, theirs in sides) / 2
    return found


def line_of(
    number: int, scored: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]
) -> str:
    """A line of rounds.jsonl."""
    return json.dumps({"round": number, **scored, **data, **training}) + "\n"
