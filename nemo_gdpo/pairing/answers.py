"""Sampled answers with their scores, read strictly, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.config.pairs import PairsSection
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.rows import Row, parse_row, parse_sampling
from nemo_gdpo.generation.store import read_generations, shards
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.jsonl import read_objects

LOGPROBS = "cumulative_logprobs"


@dataclass(frozen=True)
class AnswerRow:
    """A row of `generations-*.jsonl`, with numbers of its answers."""

    row: Row
    scores: tuple[float, ...] | None
    """From the row or a file; None: a reward computes them."""
    log_probs: tuple[float, ...] | None
    """Mean log-prob a token, where they are asked for."""


def read_answers(settings: PairsSection) -> list[AnswerRow]:
    """All rows of a directory, in its order.

    Raises:
        UserError: no rows, a bad one (file and line), or one without what the settings read.
    """
    directory = Path(str(settings.generations))
    if not directory.is_dir() or not shards(directory):
        raise UserError(
            f"pairs.generations: {directory} has no generations-*.jsonl; give a directory of "
            "nemo-gdpo generate"
        )
    given = None if settings.scores_path is None else _score_file(Path(settings.scores_path))
    found, points, model = [], set(), None
    for where, plain in read_generations(directory):
        row, row_model = parse_row(plain, where)
        if model not in (None, row_model):
            raise UserError(f"{where}: model_hash is another than before; keep models apart")
        model = row_model
        points.add(row.sampling)
        scores = None
        if settings.score_column is not None:
            scores = _numbers(plain, settings.score_column, len(row.outputs), where)
        elif given is not None:
            scores = given.of(row)
        log_probs = _log_probs(plain, row) if settings.rarity == "log_prob" else None
        found.append(AnswerRow(row, scores, log_probs if settings.method == "divpo" else None))
    if not found:
        raise UserError(f"pairs.generations: {directory} has no complete row yet")
    if given is not None:
        given.refuse_unused(several=len(points) > 1)
    return found


class _ScoreFile:
    """Scores of a JSONL file, taken one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, SamplingPoint | None], tuple[str, dict[str, Any]]] = {}
        self.used: dict[tuple[str, SamplingPoint | None], str] = {}

    def of(self, row: Row) -> tuple[float, ...]:
        for key in ((row.id, row.sampling), (row.id, None)):
            if key not in self.rows:
                continue
            if key in self.used:
                raise UserError(
                    f"{self.rows[key][0]}: scores of {self.used[key]} and of {row.where}; write "
                    "sampling into the lines, as the rows have it"
                )
            self.used[key] = row.where
            where, plain = self.rows[key]
            return _numbers(plain, "scores", len(row.outputs), where)
        raise UserError(
            f"{self.path}: no scores for {row.id!r} ({row.where}); score every row, or remove it"
        )

    def refuse_unused(self, *, several: bool) -> None:
        for key, (where, _) in self.rows.items():
            if key not in self.used:
                told = " at that sampling" if several and key[1] is not None else ""
                raise UserError(f"{where}: no row of the generations has id {key[0]!r}{told}")


def _score_file(path: Path) -> _ScoreFile:
    if not path.is_file():
        raise UserError(f"pairs.scores_path: {path} does not exist; correct the path")
    found = _ScoreFile(path)
    for where, _, plain in read_objects(path):
        name = plain.get("id")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: id is missing or not a text; write the prompt's")
        sampling = plain.get("sampling")
        point = None if sampling is None else parse_sampling(sampling, where)
        if (name, point) in found.rows:
            raise UserError(f"{where}: the same id as {found.rows[name, point][0]}; remove one")
        found.rows[name, point] = where, plain
    return found


def _numbers(plain: Mapping[str, Any], key: str, count: int, where: str) -> tuple[float, ...]:
    values = plain.get(key)
    if not isinstance(values, list) or len(values) != count:
        have = f"{len(values)}" if isinstance(values, list) else "no list"
        raise UserError(f"{where}: {key!r} has {have} for {count} outputs; write a number for each")
    for value in values:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not math.isfinite(value):
            raise UserError(f"{where}: {key!r} holds {value!r}; write finite numbers")
    return tuple(float(value) for value in values)


def _log_probs(plain: Mapping[str, Any], row: Row) -> tuple[float, ...]:
    if LOGPROBS not in plain or row.token_ids is None:
        raise UserError(
            f"{row.where}: no {LOGPROBS}, and pairs.rarity=log_prob reads them; sample with "
            "generation.logprobs=cumulative, or set pairs.rarity=embedding"
        )
    sums = _numbers(plain, LOGPROBS, len(row.outputs), row.where)
    return tuple(total / max(1, len(ids)) for total, ids in zip(sums, row.token_ids, strict=True))


def by_prompt(rows: Sequence[AnswerRow]) -> Iterator[tuple[str, list[AnswerRow]]]:
    """(id, rows) of every prompt, in the order of ids: not in that in which rows were finished.

    Raises:
        UserError: one id has two prompts.
    """
    found: dict[str, list[AnswerRow]] = {}
    for one in rows:
        same = found.setdefault(one.row.id, [])
        if same and same[0].row.prompt != one.row.prompt:
            raise UserError(
                f"{one.row.where}: id {one.row.id!r} has another prompt than in "
                f"{same[0].row.where}; give different prompts different ids"
            )
        same.append(one)
    for name in sorted(found):
        yield name, sorted(found[name], key=lambda one: str(one.row.sampling))
