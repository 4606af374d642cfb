"""Reads what `nemo-gdpo generate` wrote, checked line by line, in one order for all runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.manifest import read_manifest
from nemo_gdpo.generation.rows import Row, StoredPrompt, parse_row
from nemo_gdpo.generation.store import read_generations, shards
from nemo_gdpo.generation.types import SamplingPoint

VERBALISED = "verbalised"
"""In a manifest's settings: its responses were not sampled one by one."""


@dataclass(frozen=True)
class Generations:
    """One run: the rows of every point, in the order of `prompt_ids`."""

    name: str
    directory: Path
    model_hash: str
    settings: dict[str, Any]
    """Settings of the sampling, from the manifest; empty without one."""
    prompt_ids: tuple[str, ...]
    points: dict[SamplingPoint, tuple[Row, ...]]

    @property
    def date(self) -> str | None:
        """Day that the prompts bear, as 2026-01-31; None where their template has no clock."""
        date = self.settings.get("date")
        return date if isinstance(date, str) else None

    @property
    def is_verbalised(self) -> bool:
        """Whether `nemo-gdpo evaluate verbalised` took its responses out of longer outputs."""
        return VERBALISED in self.settings

    @property
    def prompts(self) -> tuple[StoredPrompt, ...]:
        return tuple(row.prompt for row in next(iter(self.points.values())))


def read_run(name: str, directory: Path) -> Generations:
    """Read one directory.

    Raises:
        UserError: it holds no rows, a row is bad (with file and line), or a point lacks prompts.
    """
    where = f"evaluation.runs.{name}"
    if not directory.is_dir():
        raise UserError(f"{where}: {directory} is not a directory; give one of nemo-gdpo generate")
    if not shards(directory):
        raise UserError(
            f"{where}: {directory} has no generations-*.jsonl; give a directory of nemo-gdpo "
            "generate"
        )
    rows: dict[tuple[str, SamplingPoint], Row] = {}
    model_hash: str | None = None
    for place, plain in read_generations(directory):
        row, row_hash = parse_row(plain, place)
        if model_hash not in (None, row_hash):
            raise UserError(f"{place}: model_hash is another than before; keep models apart")
        model_hash = row_hash
        key = (row.id, row.sampling)
        if key in rows:
            raise UserError(f"{place}: the same row as {rows[key].where}; remove one of them")
        rows[key] = row
    if model_hash is None:
        raise UserError(f"{where}: {directory} has no complete row yet; run nemo-gdpo generate")
    manifest = read_manifest(directory) or {}
    settings = manifest.get("settings", {})
    return Generations(
        name=name,
        directory=directory,
        model_hash=model_hash,
        settings=settings if isinstance(settings, dict) else {},
        prompt_ids=tuple(dict.fromkeys(row.id for row in rows.values())),
        points=_points(rows.values()),
    )


def _points(rows: Any) -> dict[SamplingPoint, tuple[Row, ...]]:
    points: dict[SamplingPoint, list[Row]] = {}
    for row in rows:
        points.setdefault(row.sampling, []).append(row)
    order = sorted(points, key=lambda s: (s.temperature, s.top_p, s.min_p, s.top_k))
    return {sampling: tuple(points[sampling]) for sampling in order}


# --- all runs -------------------------------------------------------------------------------


def align(runs: Sequence[Generations], *, shared: bool) -> list[Generations]:
    """The same prompts, in the order of their ids, at every point of every run.

    Not in the order of the files, in which rows stand as they finished: results of one set of
    samples would differ, and those of two evaluations could not be paired.

    Args:
        runs: as read.
        shared: keep the prompts that every point of every run has, instead of refusing.

    Raises:
        UserError: prompts differ (and not `shared`), none is shared, the same id has two prompts,
            or the number of responses differs: most diversity figures depend on it.
    """
    _check_counts(runs)
    first = runs[0]
    everywhere = set(first.prompt_ids)
    for run in runs:
        for sampling, rows in run.points.items():
            here = {row.id for row in rows}
            if not shared:
                _refuse_missing(f"{run.name} at {sampling.label()}", here, first, run)
            everywhere &= here
    _check_texts(runs, everywhere)
    kept = tuple(sorted(everywhere))
    if not kept:
        raise UserError("evaluation.runs: no prompt is in all of them; sample the same prompts")
    place = {prompt: index for index, prompt in enumerate(kept)}
    return [
        replace(
            run,
            prompt_ids=kept,
            points={
                sampling: tuple(
                    sorted((r for r in rows if r.id in place), key=lambda r: place[r.id])
                )
                for sampling, rows in run.points.items()
            },
        )
        for run in runs
    ]


def _refuse_missing(what: str, here: set[str], first: Generations, run: Generations) -> None:
    own, wanted = here, set(first.prompt_ids) | set(run.prompt_ids)
    missing = sorted(wanted - own)
    if missing:
        shown = ", ".join(repr(prompt) for prompt in missing[:3])
        raise UserError(
            f"evaluation.runs: {what} lacks {len(missing)} of {len(wanted)} prompts ({shown}"
            f"{', ...' if len(missing) > 3 else ''}); sample them, or set evaluation.prompts=shared"
            " to measure on those that all have"
        )
    extra = sorted(own - set(first.prompt_ids))
    if extra:
        raise UserError(
            f"evaluation.runs: {what} has {len(extra)} prompts that {first.name} lacks "
            f"({', '.join(repr(prompt) for prompt in extra[:3])}); sample them there, or set "
            "evaluation.prompts=shared"
        )


def _check_texts(runs: Sequence[Generations], ids: set[str]) -> None:
    texts: dict[str, Row] = {}
    for run in runs:
        for rows in run.points.values():
            for row in rows:
                seen = texts.setdefault(row.id, row)
                if row.id in ids and seen.prompt != row.prompt:
                    raise UserError(
                        f"{row.where}: id {row.id!r} has another prompt than in {seen.where}; give "
                        "different prompts different ids"
                    )


def _check_counts(runs: Sequence[Generations]) -> None:
    reference: Row | None = None
    for run in runs:
        for rows in run.points.values():
            for row in rows:
                reference = reference or row
                if len(row.outputs) != len(reference.outputs):
                    raise UserError(
                        f"{row.where}: {len(row.outputs)} responses, and {len(reference.outputs)} "
                        f"in {reference.where}; diversity depends on their number, so sample "
                        "equally many"
                    )
