"""The evaluation itself: read, measure, compare, sum up, write."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nemo_gdpo import __version__
from nemo_gdpo.config.evaluation import EvaluateConfig
from nemo_gdpo.evaluation.bootstrap import bootstrap_mean
from nemo_gdpo.evaluation.catalog import describe_metrics, headline
from nemo_gdpo.evaluation.checks import REFERENCE
from nemo_gdpo.evaluation.compare import check_points, compare_runs, evenly
from nemo_gdpo.evaluation.encoder import Encoder, encoder_directory
from nemo_gdpo.evaluation.facts import training_facts
from nemo_gdpo.evaluation.flags import find_flags
from nemo_gdpo.evaluation.measure import (
    Measured,
    cached_classifier,
    embed_rows,
    measure_diversity,
    measure_rewards,
    measure_text,
)
from nemo_gdpo.evaluation.models import directory_fingerprint, resolve_device
from nemo_gdpo.evaluation.references import read_references
from nemo_gdpo.evaluation.results import (
    Interval,
    Point,
    Results,
    Run,
    Sample,
    SampleResponses,
    Sampling,
)
from nemo_gdpo.evaluation.rewards import Reward, build_reward
from nemo_gdpo.evaluation.rows import Generations, Row, align, read_run
from nemo_gdpo.evaluation.surprise import (
    Opened,
    check_tokens,
    measure_surprise,
    open_model,
    refuse_other_model,
    refuse_other_tokens,
)
from nemo_gdpo.io.arrays import Cache

CACHE = "cache/evaluation.sqlite"
_PACKAGES = ("torch", "transformers", "numpy", "sacrebleu", "vaderSentiment")


def evaluate(config: EvaluateConfig) -> Results:
    """Measure everything that the settings ask for.

    What was computed before, in the same `output_dir`, is not computed again.

    Raises:
        UserError: the settings or the input are wrong.
        EvaluationError: the disk or the judge failed; the same command goes on from there.
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
    facts = {run.name: _facts(run, config) for run in runs}
    with Cache(Path(config.output_dir) / CACHE) as cache:
        bench = Bench(config, cache)
        measured = {run.name: bench.measure(run) for run in runs}
    comparisons = compare_runs(runs, references, config) if judging else []
    return Results(
        versions=_versions(),
        settings={"seed": config.seed, **evaluation.model_dump(mode="json")},
        metrics=describe_metrics(evaluation),
        headline=headline(evaluation),
        runs=[_run(run, facts[run.name], measured[run.name], config) for run in runs],
        comparisons=comparisons,
        samples=_samples(runs, measured, config),
    )


class Bench:
    """The instruments, opened once."""

    def __init__(self, config: EvaluateConfig, cache: Cache) -> None:
        evaluation = config.evaluation
        self._evaluation, self._cache = evaluation, cache
        self._device = resolve_device(evaluation.device)
        tokens = evaluation.batch_tokens
        self._rewards: list[Reward] = [
            build_reward(reward, cache, self._device, tokens) for reward in evaluation.rewards
        ]
        self._encoder: tuple[Encoder, str] | None = None
        if evaluation.encoder is not None:
            directory = encoder_directory(evaluation.encoder)
            encoder = Encoder(directory, self._device)
            self._encoder = (encoder, directory_fingerprint(directory))
        self._classifier: Callable[[str, str], float] | None = None
        if evaluation.novelty.classifier is not None:
            path = Path(evaluation.novelty.classifier)
            self._classifier = cached_classifier(path, cache, evaluation.device)
        self._reference: Opened | None = None
        if evaluation.reference_model is not None:
            path = Path(evaluation.reference_model)
            self._reference = open_model("evaluation.reference_model", path)

    def measure(self, run: Generations) -> dict[Sampling, Measured]:
        """Every point of a run."""
        policy = self._policy(run)
        return {
            sampling: self._measure_point(sampling, rows, policy)
            for sampling, rows in run.points.items()
        }

    def _policy(self, run: Generations) -> Opened | None:
        """The model that gave the responses, where it is known: the reference, or a setting."""
        reference = self._reference
        if reference is None:
            return None
        path = self._evaluation.models.get(run.name)
        if path is None:
            return reference if run.model_hash == reference.weights else None
        policy = open_model(f"evaluation.models.{run.name}", Path(path))
        refuse_other_model(policy, run.model_hash)
        refuse_other_tokens(policy, reference)
        # The same files: one copy of the weights is enough.
        return reference if policy.fingerprint == reference.fingerprint else policy

    def _measure_point(
        self, sampling: Sampling, rows: tuple[Row, ...], policy: Opened | None
    ) -> Measured:
        evaluation, into = self._evaluation, Measured()
        measure_text(rows, into)
        measure_rewards(rows, self._rewards, into)
        embeddings = None
        if self._encoder is not None:
            encoder, fingerprint = self._encoder
            embeddings = embed_rows(
                rows, encoder, fingerprint, self._cache, evaluation.batch_tokens
            )
            into.counts["cut_by_encoder"] = encoder.count_cut(
                [text for row in rows for text in row.outputs]
            )
        measure_diversity(rows, evaluation, embeddings, self._classifier, into)
        if self._reference is not None:
            check_tokens(rows, self._reference)
            measure_surprise(
                rows,
                sampling,
                self._reference,
                policy,
                self._cache,
                self._device,
                evaluation.batch_tokens,
                into,
            )
        return into


# --- summing up -----------------------------------------------------------------------------


def _facts(run: Generations, config: EvaluateConfig) -> dict[str, Any]:
    evaluation = config.evaluation
    training = evaluation.training.get(run.name)
    return {
        **({} if training is None else training_facts(Path(training))),
        **{f"generation.{name}": value for name, value in run.settings.items()},
        **evaluation.facts.get(run.name, {}),
    }


def _intervals(measured: Measured, config: EvaluateConfig) -> dict[str, Interval]:
    bootstrap = config.evaluation.bootstrap
    found = {}
    for name, values in measured.values.items():
        interval = _interval(
            name,
            values,
            resamples=bootstrap.resamples,
            level=bootstrap.level,
            seed=config.seed,
        )
        if interval is not None:
            found[name] = interval
    return found


def _interval(name: str, values: Sequence[float | None], **settings: Any) -> Interval | None:
    if name != "perplexity":
        return bootstrap_mean(values, name=name, **settings)
    # Mean in nats: one prompt of noise would otherwise decide the mean of all. Percentiles may be
    # taken before or after exp.
    from math import exp, log

    nats = bootstrap_mean([None if v is None else log(v) for v in values], name=name, **settings)
    return nats and Interval(exp(nats.mean), exp(nats.low), exp(nats.high), nats.n)


def _run(
    run: Generations,
    facts: dict[str, Any],
    measured: dict[Sampling, Measured],
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
                flags=find_flags(metrics, found.strange_words, config.evaluation),
            )
        )
    return Run(
        name=run.name,
        generations=str(run.directory),
        model_hash=run.model_hash,
        facts=facts,
        prompt_ids=list(run.prompt_ids),
        points=points,
    )


def _samples(
    runs: Sequence[Generations],
    measured: dict[str, dict[Sampling, Measured]],
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
