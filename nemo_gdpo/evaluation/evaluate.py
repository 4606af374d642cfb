"""The evaluation itself: read, measure, compare, sum up, write."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nemo_gdpo import __version__
from nemo_gdpo.config.evaluation import EvaluateConfig
from nemo_gdpo.data.clock import today
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.across_runs import check_matching, length_matched, similarities
from nemo_gdpo.evaluation.bootstrap import bootstrap_mean
from nemo_gdpo.evaluation.checks import REFERENCE
from nemo_gdpo.evaluation.compare import check_points, compare_runs, evenly
from nemo_gdpo.evaluation.evaluator import Evaluator, Measured
from nemo_gdpo.evaluation.failures import Failures
from nemo_gdpo.evaluation.judging.references import read_references
from nemo_gdpo.evaluation.metrics.metric import Metric
from nemo_gdpo.evaluation.metrics.table import headline, metrics_of
from nemo_gdpo.evaluation.report.flags import find_flags
from nemo_gdpo.evaluation.results import (
    Interval,
    Point,
    Results,
    Run,
    Sample,
    SampleResponses,
    read_results,
)
from nemo_gdpo.evaluation.rows import Generations, align, read_run
from nemo_gdpo.evaluation.run_metadata import training_metadata
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.arrays import Cache

CACHE = "cache/evaluation.sqlite"
_PACKAGES = ("torch", "transformers", "numpy", "sacrebleu", "vaderSentiment")


def evaluate(config: EvaluateConfig) -> Results:
    """Measure everything that the settings ask for.

    What was computed before, in the same `output_dir`, is not computed again.

    Raises:
        UserError: the settings or the input are wrong.
        EvaluationError: a model or the judge failed; the same command resumes from there.
    """
    results, failures = measure_all(config)
    error = failures.error("the same command goes on from there")
    if error is not None:
        raise error
    return results


def measure_all(config: EvaluateConfig) -> tuple[Results, Failures]:
    """What can be measured, and what could not.

    Raises:
        UserError: the settings or the input are wrong, before anything is measured.
        RunError: the disk failed.
    """
    evaluation = config.evaluation
    found = [read_run(name, Path(path)) for name, path in evaluation.runs.items()]
    runs = align(found, shared=evaluation.prompts == "shared")
    references: dict[str, str] = {}
    judging = evaluation.judge.url is not None
    if judging and evaluation.judge.against == REFERENCE:
        assert evaluation.references_path is not None
        references = read_references(
            Path(evaluation.references_path), evaluation.reference_field, runs[0].prompt_ids
        )
    elif judging:
        check_points(runs, evaluation.judge.against)
    check_matching(runs, config)
    metadata = {run.name: _metadata(run, config) for run in runs}
    failures = Failures()
    with Cache(Path(config.output_dir) / CACHE) as cache:
        date = _date(runs, config)
        evaluator = Evaluator(config, cache, failures, date)
        if evaluation.date is not None and not evaluator.has_clock:
            raise UserError(
                f"evaluation.date: {evaluation.date} would not be read: no reward model's template "
                "has a clock; set it to null"
            )
        policies = {run.name: evaluator.policy_of(run) for run in runs}
        measured = {run.name: evaluator.measure(run, policies[run.name]) for run in runs}
        matched = length_matched(measured, config, evaluator.part_of)
    comparisons = compare_runs(runs, references, config, failures) if judging else []
    results = Results(
        versions=_versions(),
        settings={
            "seed": config.seed,
            **evaluation.model_dump(mode="json"),
            "date": date if evaluator.has_clock else None,
        },
        metrics={metric.name: metric.info() for metric in metrics_of(evaluation)},
        headline=headline(evaluation),
        runs=[_run(run, metadata[run.name], measured[run.name], config) for run in runs],
        comparisons=comparisons,
        similarities=similarities(measured, config),
        length_matched=matched,
        samples=_samples(runs, measured, config),
        missing=failures.missing,
    )
    return results, failures


def _date(runs: Sequence[Generations], config: EvaluateConfig) -> str:
    """One day for all runs, so that a reward model sees the same of each, now and later."""
    earlier = None
    with contextlib.suppress(UserError):  # none is there, or it is of another version
        earlier = read_results(Path(config.output_dir)).settings.get("date")
    return config.evaluation.date or runs[0].date or earlier or today()


# --- summing up -----------------------------------------------------------------------------


def _metadata(run: Generations, config: EvaluateConfig) -> dict[str, Any]:
    """The report's metadata of a run's model: training, sampling, and what the settings add."""
    evaluation = config.evaluation
    training = evaluation.training.get(run.name)
    return {
        **({} if training is None else training_metadata(Path(training))),
        **{f"generation.{name}": value for name, value in run.settings.items()},
        **evaluation.facts.get(run.name, {}),
    }


def _intervals(measured: Measured, config: EvaluateConfig) -> dict[str, Interval]:
    bootstrap = config.evaluation.bootstrap
    found = {}
    for metric in metrics_of(config.evaluation):
        interval = _interval(
            metric,
            measured.values.get(metric.name, []),
            resamples=bootstrap.resamples,
            level=bootstrap.level,
            seed=config.seed,
        )
        if interval is not None:
            found[metric.name] = interval
    return found


def _interval(metric: Metric, values: Sequence[float | None], **settings: Any) -> Interval | None:
    if not metric.log_interval:
        return bootstrap_mean(values, name=metric.name, **settings)
    # Percentiles may be taken before or after exp.
    logs = [None if value is None else math.log(value) for value in values]
    nats = bootstrap_mean(logs, name=metric.name, **settings)
    return nats and Interval(math.exp(nats.mean), math.exp(nats.low), math.exp(nats.high), nats.n)


def _run(
    run: Generations,
    metadata: dict[str, Any],
    measured: dict[SamplingPoint, Measured],
    config: EvaluateConfig,
) -> Run:
    points = []
    for sampling, rows in run.points.items():
        found = measured[sampling]
        metrics = _intervals(found, config)
        points.append(
            Point(
                sampling=sampling,
                num_prompts=len(rows),
                num_samples=len(rows[0].outputs),
                metrics=metrics,
                per_prompt=found.values,
                counts=dict(sorted(found.counts.items())),
                flags=find_flags(metrics, found.type_token_ratio, config.evaluation, found.counts),
                unscored=found.unscored,
            )
        )
    return Run(
        name=run.name,
        generations=str(run.directory),
        model_hash=run.model_hash,
        facts=metadata,
        prompt_ids=list(run.prompt_ids),
        points=points,
    )


def _samples(
    runs: Sequence[Generations],
    measured: dict[str, dict[SamplingPoint, Measured]],
    config: EvaluateConfig,
) -> list[Sample]:
    shown = config.evaluation.samples
    first = runs[0]
    found = []
    for index in evenly(len(first.prompt_ids), shown.prompts):
        responses = [
            SampleResponses(
                run=run.name,
                sampling=sampling,
                outputs=list(rows[index].outputs[: shown.responses]),
                finish_reasons=list(rows[index].finish_reasons[: shown.responses]),
                rewards={
                    name: scores[index][: shown.responses]
                    for name, scores in measured[run.name][sampling].rewards.items()
                },
            )
            for run in runs
            for sampling, rows in run.points.items()
        ]
        found.append(Sample(first.prompt_ids[index], first.prompts[index], responses))
    return found


def _versions() -> dict[str, str]:
    found = {"nemo_gdpo": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    return found
