"""Pairs of all prompts: score, measure, pick, count."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_gdpo.config.pairs import PairsConfig
from nemo_gdpo.data.clock import today
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.diversity import cosine_similarity
from nemo_gdpo.evaluation.metrics.encoder import Encoder, embed_rows, encoder_directory
from nemo_gdpo.evaluation.metrics.rewards import Answer, build_reward
from nemo_gdpo.evaluation.models import resolve_device
from nemo_gdpo.generation.manifest import read_manifest
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.pairing.answers import AnswerRow, by_prompt, read_answers
from nemo_gdpo.pairing.methods import Candidates, NoPair, mean_distance, pick


@dataclass
class Pairs:
    """What came of the prompts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Pairs in the columns that `data.train_path` reads."""
    without: Counter[str] = field(default_factory=Counter)
    """Reason -> prompts that gave no pair."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> answers that were not looked at."""
    prompts: int = 0

    def stats(self) -> dict[str, Any]:
        """All counts."""
        return {
            "prompts": self.prompts,
            "pairs": len(self.rows),
            "prompts_without_a_pair": dict(sorted(self.without.items())),
            "answers_left_out": dict(sorted(self.left_out.items())),
        }

    def text(self) -> str:
        """The file."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


@dataclass(frozen=True)
class _Answer:
    text: str
    score: float
    log_prob: float | None


def make_pairs(config: PairsConfig, cache: Cache) -> Pairs:
    """Read, score and pair as configured.

    Raises:
        UserError: anything wrong with the input, or no prompt gives a pair.
    """
    settings = config.pairs
    rows = _scored(config, read_answers(settings), cache)
    encoder = None
    if settings.method == "redipo" or (
        settings.method == "divpo" and settings.rarity == "embedding"
    ):
        encoder = Encoder(encoder_directory(settings.encoder), resolve_device(settings.device))
    found = Pairs()
    for name, same in by_prompt(rows):
        found.prompts += 1
        answers = _different(same, found.left_out)
        candidates = Candidates(
            np.array([one.score for one in answers]),
            np.array([len(one.text.split()) for one in answers], dtype=np.int64),
        )
        if len(answers) > 1 and settings.method != "best_worst":
            candidates = _with_rarity(candidates, answers, same[0], encoder, cache, config)
        outcome = pick(candidates, settings, seed=config.seed, prompt=name)
        if isinstance(outcome, NoPair):
            found.without[outcome.reason] += 1
            continue
        chosen, rejected = outcome
        found.rows.append(_row(name, same[0], answers[chosen], answers[rejected], config))
    if not found.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.without.items())
        raise UserError(
            f"pairs.generations: no prompt of {found.prompts} gives a pair ({reasons}); sample "
            "more answers, or choose other limits"
        )
    return found


def _scored(config: PairsConfig, rows: list[AnswerRow], cache: Cache) -> list[AnswerRow]:
    settings = config.pairs
    if not settings.rewards:
        return rows
    manifest = read_manifest(Path(str(settings.generations))) or {}
    written = manifest.get("settings", {}).get("date")
    reward = build_reward(
        settings.rewards[0],
        cache,
        resolve_device(settings.device),
        settings.batch_tokens,
        settings.date or written or today(),
    )
    asked = [
        Answer(one.row.prompt, text, f"{one.row.where}, response {number}")
        for one in rows
        for number, text in enumerate(one.row.outputs, start=1)
    ]
    values: Iterator[float] = iter(reward(asked))
    return [
        AnswerRow(one.row, tuple(next(values) for _ in one.row.outputs), one.log_probs)
        for one in rows
    ]


def _different(rows: list[AnswerRow], left_out: Counter[str]) -> list[_Answer]:
    """Complete, different answers, in the order of the rows."""
    found: dict[str, _Answer] = {}
    for one in rows:
        assert one.scores is not None
        for number, text in enumerate(one.row.outputs):
            if one.row.finish_reasons[number] != "stop":
                left_out["cut, without an end"] += 1
            elif not text.strip():
                left_out["empty"] += 1
            elif text in found:
                left_out["said before"] += 1
            else:
                log_prob = None if one.log_probs is None else one.log_probs[number]
                found[text] = _Answer(text, one.scores[number], log_prob)
    return list(found.values())


def _with_rarity(
    candidates: Candidates,
    answers: list[_Answer],
    first: AnswerRow,
    encoder: Encoder | None,
    cache: Cache,
    config: PairsConfig,
) -> Candidates:
    if encoder is None:
        rarity_K = np.array([-one.log_prob for one in answers if one.log_prob is not None])
    else:
        row = replace(first.row, outputs=tuple(one.text for one in answers))
        (vectors,) = embed_rows([row], encoder, cache, config.pairs.batch_tokens)
        rarity_K = mean_distance(cosine_similarity(vectors))
    return Candidates(candidates.score_K, candidates.words_K, rarity_K)


def _row(
    name: str, first: AnswerRow, chosen: _Answer, rejected: _Answer, config: PairsConfig
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": name,
        "prompt": first.row.prompt,
        "chosen": chosen.text,
        "rejected": rejected.text,
    }
    # What is chosen for its diversity may score less: under ODPO's names that would be a mistake.
    names = (
        ("score_of_chosen", "score_of_rejected")
        if config.pairs.method == "redipo"
        else ("chosen_score", "rejected_score")
    )
    return row | dict(zip(names, (chosen.score, rejected.score), strict=True))
