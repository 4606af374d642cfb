"""Pools one evaluation a job into one of arms: seeds of an arm become one run.

A prompt's value is the mean over seeds. Intervals draw seeds and prompts anew, both with
replacement, so that they cover another training as far as so few seeds can tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_gdpo.evaluation.results import (
    Flag,
    Interval,
    Point,
    Results,
    Run,
    Sample,
    Sampling,
)

Values = npt.NDArray[np.float64]
LEVEL = 0.95


def draws(
    seeds: int, prompts: int, resamples: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of seeds [resamples, seeds] and prompts [resamples, prompts], drawn anew."""
    generator = np.random.default_rng(seed)
    return (
        generator.integers(0, seeds, size=(resamples, seeds)),
        generator.integers(0, prompts, size=(resamples, prompts)),
    )


def resampled_means(
    value_SP: Values, drawn: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
) -> Values:
    """The mean of each draw; nan marks a prompt without a value, which a mean leaves out."""
    seeds_RS, prompts_RP = drawn
    picked = value_SP[seeds_RS[:, :, None], prompts_RP[:, None, :]]
    known = np.isfinite(picked)
    total = np.where(known, picked, 0.0).sum(axis=(1, 2))
    count = known.sum(axis=(1, 2))
    means: Values = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means


def interval_of(means: Values, mean: float, n: int) -> Interval:
    """Percentile interval of bootstrap means."""
    outside = (1.0 - LEVEL) / 2.0
    low, high = np.nanquantile(means, [outside, 1.0 - outside])
    return Interval(mean, float(low), float(high), n)


def values(point: Point, metric: str, prompts: int) -> Values:
    """One value a prompt, nan for none."""
    known = point.per_prompt.get(metric, [None] * prompts)
    return np.array([np.nan if value is None else value for value in known], dtype=np.float64)


def table_SP(points: Sequence[Point], metric: str, prompts: int) -> Values:
    """Seeds by prompts."""
    return np.stack([values(point, metric, prompts) for point in points])


def in_order(results: Results) -> Results:
    """The same with prompts in the order of their ids: arms are compared prompt by prompt."""

    def ordered(run: Run) -> Run:
        order = sorted(range(len(run.prompt_ids)), key=run.prompt_ids.__getitem__)
        points = [
            dataclasses.replace(
                point,
                per_prompt={
                    name: [known[index] for index in order]
                    for name, known in point.per_prompt.items()
                },
            )
            for point in run.points
        ]
        return dataclasses.replace(
            run, prompt_ids=[run.prompt_ids[index] for index in order], points=points
        )

    return dataclasses.replace(results, runs=[ordered(run) for run in results.runs])


def refuse_other_prompts(found: Mapping[str, Mapping[int, Results]]) -> None:
    """Refuse to pair runs whose prompts or their order differ.

    Raises:
        ValueError: naming the arm and the seed.
    """
    first = next(iter(next(iter(found.values())).values())).runs[0].prompt_ids
    for name, seeds in found.items():
        for seed, results in seeds.items():
            if results.runs[0].prompt_ids != first:
                raise ValueError(f"{name}: seed {seed} was asked other prompts")


def pool(found: Mapping[str, Mapping[int, Results]], resamples: int) -> Results:
    """One results object with a run for each arm.

    Args:
        found: arm -> seed -> the results of its one run, `in_order`. All were measured in the same
            way.
        resamples: of the bootstrap.

    Raises:
        ValueError: prompts differ.
    """
    refuse_other_prompts(found)
    first = next(iter(next(iter(found.values())).values()))
    return dataclasses.replace(
        first,
        metrics=_merged(results.metrics for seeds in found.values() for results in seeds.values()),
        settings={
            **{
                name: value
                for name, value in first.settings.items()
                if name not in ("runs", "models", "training", "facts", "seed")
            },
            "pooled": "mean over seeds for each prompt; intervals over seeds and prompts",
        },
        runs=[_run(name, seeds, resamples) for name, seeds in found.items()],
        samples=_samples(found),
    )


def _merged(parts: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return merged


def _run(name: str, seeds: Mapping[int, Results], resamples: int) -> Run:
    runs = {seed: results.runs[0] for seed, results in sorted(seeds.items())}
    first = next(iter(runs.values()))
    points = [
        _point([_at(run, sampling) for run in runs.values()], list(runs), resamples)
        for sampling in (point.sampling for point in first.points)
    ]
    facts = {
        **first.facts,
        "seeds": list(runs),
        "model hashes": [run.model_hash[:12] for run in runs.values()],
    }
    queries = [r.facts["queries asked"] for r in runs.values() if "queries asked" in r.facts]
    if queries:
        facts["queries asked"] = queries
    return dataclasses.replace(
        first, name=name, generations=f"arms/{name}", facts=facts, points=points
    )


def _at(run: Run, sampling: Sampling) -> Point:
    (point,) = (p for p in run.points if p.sampling == sampling)
    return point


def _point(points: Sequence[Point], seeds: Sequence[int], resamples: int) -> Point:
    first = points[0]
    prompts = len(next(iter(first.per_prompt.values())))
    drawn = draws(len(points), prompts, resamples, seed=1)
    metrics, per_prompt = {}, {}
    for name in first.per_prompt:
        value_SP = table_SP(points, name, prompts)
        known = np.isfinite(value_SP)
        if not known.any():
            continue
        metrics[name] = interval_of(
            resampled_means(value_SP, drawn),
            float(value_SP[known].mean()),
            int(known.any(axis=0).sum()),
        )
        sums = np.where(known, value_SP, 0.0).sum(axis=0)
        counts = known.sum(axis=0)
        per_prompt[name] = [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]
    keys = dict.fromkeys(key for point in points for key in point.counts)
    flags = [
        Flag(flag.name, flag.message if len(seeds) == 1 else f"seed {seed}: {flag.message}")
        for seed, point in zip(seeds, points, strict=True)
        for flag in point.flags
    ]
    return dataclasses.replace(
        first,
        metrics=metrics,
        per_prompt=per_prompt,
        counts={key: sum(point.counts.get(key, 0) for point in points) for key in keys},
        flags=flags,
    )


def _samples(found: Mapping[str, Mapping[int, Results]]) -> list[Sample]:
    """The first seed's responses of every arm, prompt by prompt."""
    merged: dict[str, Sample] = {}
    for seeds in found.values():
        results = seeds[min(seeds)]
        for sample in results.samples:
            known = merged.get(sample.id)
            before = known.responses if known is not None else []
            merged[sample.id] = dataclasses.replace(sample, responses=[*before, *sample.responses])
    return list(merged.values())
