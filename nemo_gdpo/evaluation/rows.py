"""What `nemo-gdpo generate` wrote, checked line by line and brought into one order for all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.results import Sampling, Turn
from nemo_gdpo.generation.manifest import read_manifest
from nemo_gdpo.generation.store import read_generations, shards

Prompt = str | list[Turn]


@dataclass(frozen=True)
class Row:
    """All responses to one prompt at one sampling setting."""

    id: str
    prompt: Prompt
    sampling: Sampling
    outputs: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    stopped_by_text: tuple[bool, ...]
    """Ended before a stop text, so without an end token."""
    prompt_token_ids: tuple[int, ...] | None
    """What the model read; None for rows that do not say."""
    token_ids: tuple[tuple[int, ...], ...] | None
    """What it sampled, an end token included; None for rows that do not say."""
    where: str
    """File and line, for messages."""


@dataclass(frozen=True)
class Generations:
    """One run: the rows of every point, in the order of `prompt_ids`."""

    name: str
    directory: Path
    model_hash: str
    settings: dict[str, Any]
    """Of the sampling, from the manifest; empty without one."""
    prompt_ids: tuple[str, ...]
    points: dict[Sampling, tuple[Row, ...]]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(row.prompt for row in next(iter(self.points.values())))


def read_run(name: str, directory: Path) -> Generations:
    """Read one directory.

    Raises:
        UserError: it holds no rows, a row is bad (with file and line), or a point lacks prompts.
    """
    where = f"evaluation.runs.{name}"
    if not directory.is_dir():
        raise UserError(f"{where}: {directory} is no directory; give one of nemo-gdpo generate")
    if not shards(directory):
        raise UserError(
            f"{where}: {directory} has no generations-*.jsonl; give a directory of nemo-gdpo "
            "generate"
        )
    rows: dict[tuple[str, Sampling], Row] = {}
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


def _points(rows: Any) -> dict[Sampling, tuple[Row, ...]]:
    points: dict[Sampling, list[Row]] = {}
    for row in rows:
        points.setdefault(row.sampling, []).append(row)
    order = sorted(points, key=lambda s: (s.temperature, s.top_p, s.min_p, s.top_k))
    return {sampling: tuple(points[sampling]) for sampling in order}


# --- one row --------------------------------------------------------------------------------


def parse_row(plain: Mapping[str, Any], where: str) -> tuple[Row, str]:
    """(row, model hash) of one line's object.

    Raises:
        UserError: a field is missing or not what it has to be; with file and line.
    """
    outputs = _list(plain, "outputs", where)
    if not outputs or not all(isinstance(text, str) for text in outputs):
        raise UserError(f"{where}: outputs is no list of texts; sample the row again")
    reasons = _list(plain, "finish_reasons", where)
    if len(reasons) != len(outputs) or not all(isinstance(reason, str) for reason in reasons):
        raise UserError(
            f"{where}: {len(reasons)} finish_reasons for {len(outputs)} outputs; sample the row "
            "again"
        )
    stops = plain.get("stop_reasons", [None] * len(outputs))
    if not isinstance(stops, list) or len(stops) != len(outputs):
        raise UserError(f"{where}: stop_reasons are not one an output; sample the row again")
    ids = plain.get("token_ids")
    if ids is not None and (
        not isinstance(ids, list) or len(ids) != len(outputs) or not all(map(_token_ids, ids))
    ):
        raise UserError(f"{where}: token_ids are not one list of ids an output; sample it again")
    prompt_ids = plain.get("prompt_token_ids")
    if prompt_ids is not None and not _token_ids(prompt_ids):
        raise UserError(f"{where}: prompt_token_ids is no list of ids; sample the row again")
    row = Row(
        id=_text(plain, "id", where),
        prompt=_prompt(plain.get("prompt"), where),
        sampling=_sampling(plain.get("sampling"), where),
        outputs=tuple(outputs),
        finish_reasons=tuple(reasons),
        stopped_by_text=tuple(isinstance(reason, str) for reason in stops),
        prompt_token_ids=None if prompt_ids is None else tuple(prompt_ids),
        token_ids=None if ids is None else tuple(map(tuple, ids)),
        where=where,
    )
    return row, _text(plain, "model_hash", where)


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


def _text(plain: Mapping[str, Any], field: str, where: str) -> str:
    value = plain.get(field)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {field} is missing or no text; sample the row again")
    return value


def _list(plain: Mapping[str, Any], field: str, where: str) -> list[Any]:
    value = plain.get(field)
    if not isinstance(value, list):
        raise UserError(f"{where}: {field} is missing or no list; sample the row again")
    return value


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(map(_is_turn, value)):
        return value
    raise UserError(f"{where}: prompt is neither text nor a list of messages; sample the row again")


def _is_turn(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"role", "content"} <= set(value)
        and all(isinstance(part, str) for part in value.values())
    )


def _sampling(value: Any, where: str) -> Sampling:
    expected = {"temperature": float, "top_p": float, "min_p": float, "top_k": int}
    if not isinstance(value, dict) or set(value) != set(expected):
        raise UserError(f"{where}: sampling does not hold exactly {', '.join(expected)}")
    for name, kind in expected.items():
        given = value[name]
        if type(given) not in ((int,) if kind is int else (int, float)):
            raise UserError(f"{where}: sampling.{name} is {given!r}, not a number")
    return Sampling(
        temperature=float(value["temperature"]),
        top_p=float(value["top_p"]),
        min_p=float(value["min_p"]),
        top_k=int(value["top_k"]),
    )


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
