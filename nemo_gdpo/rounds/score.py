"""`nemo-gdpo rounds score`: a round's samples against constraints and reward, and its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.config.constraints import ConstraintsConfig
from nemo_gdpo.config.rounds import ScoreConfig
from nemo_gdpo.constraints import Constraints, Counts, is_constrained, refuse_never_met
from nemo_gdpo.data.clock import today
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.rewards import Answer, build_reward
from nemo_gdpo.evaluation.models import resolve_device
from nemo_gdpo.generation.manifest import read_manifest
from nemo_gdpo.generation.rows import Row, parse_row
from nemo_gdpo.generation.store import read_generations, shards
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.io.files import write_output
from nemo_gdpo.rounds.answers import ANSWERS, PromptAnswers, Scored, text_of
from nemo_gdpo.rounds.metrics import METRICS, measured

SCORES = "scores.jsonl"
"""For `nemo-gdpo pairs`: `pairs.scores_path`."""


@dataclass(frozen=True)
class Sampled:
    """A row of samples with what is kept of it beside the texts."""

    row: Row
    log_probs: tuple[float | None, ...]
    tokens: tuple[int | None, ...]


def score(config: ScoreConfig, cache: Cache) -> list[PromptAnswers]:
    """Score all samples and write the three files, metrics.json last.

    Raises:
        UserError: no samples, a bad one (file and line), or one that cannot be scored; or a
            constraint that no answer of the first round meets. Nothing is written then.
    """
    rows = read_samples(Path(str(config.score.samples)))
    floor = config.constraints.log_reward_floor * config.score.nats
    rewards = _rewards(config, [sampled.row for sampled in rows], cache)
    _refuse_hopeless(config, [sampled.row for sampled in rows])
    scored = [
        _scored(sampled, values, floor) for sampled, values in zip(rows, rewards, strict=True)
    ]
    found = _by_prompt(rows, scored, config)
    output = Path(config.output_dir)
    write_output(output / ANSWERS, text_of(found))
    write_output(output / SCORES, _scores_text(rows, scored))
    metrics = measured(found, constraint_names(config.constraints), config.score, cache)
    write_output(output / METRICS, json.dumps(metrics, indent=1) + "\n")
    return found


def read_samples(directory: Path) -> list[Sampled]:
    """All rows, by id and sampling, whatever the order in which they were finished.

    Raises:
        UserError: none, or a bad one; with file and line.
    """
    if not directory.is_dir() or not shards(directory):
        raise UserError(
            f"score.samples: {directory} has no generations-*.jsonl; give a directory of "
            "nemo-gdpo generate"
        )
    found = []
    for where, plain in read_generations(directory):
        row, _ = parse_row(plain, where)
        count = len(row.outputs)
        log_probs = _numbers(plain, "cumulative_logprobs", count, where)
        tokens = _numbers(plain, "token_counts", count, where)
        found.append(Sampled(row, log_probs, tuple(None if n is None else int(n) for n in tokens)))
    if not found:
        raise UserError(f"score.samples: {directory} has no complete row yet; sample again")
    return sorted(found, key=lambda sampled: (sampled.row.id, str(sampled.row.sampling)))


def _numbers(plain: dict[str, Any], key: str, count: int, where: str) -> tuple[float | None, ...]:
    values = plain.get(key)
    if values is None:
        return (None,) * count
    real = isinstance(values, list) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in values
    )
    if not real or len(values) != count:
        raise UserError(f"{where}: {key} are not numbers, one for each output; sample it again")
    return tuple(values)


def _is_complete(row: Row, number: int) -> bool:
    return row.finish_reasons[number] == "stop" and row.outputs[number].strip() != ""


def _rewards(config: ScoreConfig, rows: Sequence[Row], cache: Cache) -> list[list[float | None]]:
    """The reward of each complete answer of each row."""
    settings = config.score
    if not settings.rewards:
        return [[None] * len(row.outputs) for row in rows]
    written = (read_manifest(Path(str(settings.samples))) or {}).get("settings", {}).get("date")
    date = settings.date or written or today()
    device = resolve_device(settings.device)
    reward = build_reward(settings.rewards[0], cache, device, settings.batch_tokens, date)
    asked = [
        Answer(row.prompt, text, f"{row.where}, response {number + 1}")
        for row in rows
        for number, text in enumerate(row.outputs)
        if _is_complete(row, number)
    ]
    values: Iterator[float] = iter(reward(asked))
    return [
        [next(values) if _is_complete(row, number) else None for number in range(len(row.outputs))]
        for row in rows
    ]


def constraint_names(config: ConstraintsConfig) -> tuple[str, ...]:
    """Names of the constraints, also where a grammar could not be checked here."""
    if not is_constrained(config):
        return ()
    others = Constraints(config.model_copy(update={"grammar": None})).names
    return others if config.grammar is None else (*others, "grammar")


def _refuse_hopeless(config: ScoreConfig, rows: Sequence[Row]) -> None:
    """See `refuse_never_met`; and samples whose constraints are others than these."""
    names = constraint_names(config.constraints)
    counts = Counts(names)
    for row in rows:
        for broken in _broken(row):
            unknown = [name for name in broken if name not in counts.broken]
            if unknown or (names and row.broken is None):
                said = f"breaks {unknown[0]!r}, which" if unknown else "has no verdicts, and this"
                raise UserError(
                    f"{row.where}: an answer {said} is not what `constraints` asks; sample with "
                    "the constraints that you score with"
                )
            counts.add(broken)
    if config.score.round == 1:
        refuse_never_met(counts)


def _broken(row: Row) -> tuple[tuple[str, ...], ...]:
    return ((),) * len(row.outputs) if row.broken is None else row.broken


def _scored(sampled: Sampled, rewards: Sequence[float | None], floor: float) -> tuple[Scored, ...]:
    row = sampled.row
    found = []
    for number, broken in enumerate(_broken(row)):
        complete = _is_complete(row, number)
        score = (rewards[number] or 0.0) + (floor if broken else 0.0)
        found.append(
            Scored(
                text=row.outputs[number],
                complete=complete,
                score=score if complete else None,
                reward=rewards[number],
                broken=broken,
                log_prob=sampled.log_probs[number],
                tokens=sampled.tokens[number],
                temperature=row.sampling.temperature,
            )
        )
    return tuple(found)


def _by_prompt(
    rows: Sequence[Sampled], scored: Sequence[tuple[Scored, ...]], config: ScoreConfig
) -> list[PromptAnswers]:
    """The answers of all points of a prompt together, in the order of ids."""
    answers: dict[str, tuple[Scored, ...]] = {}
    first: dict[str, Row] = {}
    for sampled, values in zip(rows, scored, strict=True):
        row = sampled.row
        if first.setdefault(row.id, row).prompt != row.prompt:
            raise UserError(
                f"{row.where}: id {row.id!r} has another prompt than in {first[row.id].where}; "
                "give different prompts different ids"
            )
        answers[row.id] = answers.get(row.id, ()) + values
    settings = config.score
    return [
        PromptAnswers(name, first[name].prompt, settings.round, settings.staleness, values)
        for name, values in answers.items()
    ]


def _scores_text(rows: Sequence[Sampled], scored: Sequence[tuple[Scored, ...]]) -> str:
    """What `nemo-gdpo pairs` reads. It leaves out what is not complete: any number will do."""
    lines = (
        {
            "id": sampled.row.id,
            "sampling": sampled.row.sampling.to_dict(),
            "scores": [0.0 if one.score is None else one.score for one in values],
        }
        for sampled, values in zip(rows, scored, strict=True)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
