"""Win rates: which responses are compared, and what the judge's verdicts come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_gdpo.config.evaluation import EvaluateConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.bootstrap import bootstrap_mean
from nemo_gdpo.evaluation.checks import REFERENCE
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.failures import Failures
from nemo_gdpo.evaluation.judging.judge import Judged, Outcome, Pair, judge_pairs
from nemo_gdpo.evaluation.judging.judge_client import JudgeClient
from nemo_gdpo.evaluation.judging.transcript import Transcript
from nemo_gdpo.evaluation.metrics.definitions import WIN_RATE
from nemo_gdpo.evaluation.results import Comparison, Undecided
from nemo_gdpo.evaluation.rows import Generations
from nemo_gdpo.generation.rows import Row
from nemo_gdpo.generation.types import SamplingPoint

TRANSCRIPT = "judge/transcript.jsonl"


def evenly(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` places, evenly spaced; all of them for None."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [index * count // wanted for index in range(wanted)]


def check_points(runs: Sequence[Generations], against: str) -> None:
    """Refuse a comparison with a run that lacks a sampling point of another.

    Raises:
        UserError: naming the point.
    """
    other = next((run for run in runs if run.name == against), None)
    for run in runs if other is not None else ():
        for sampling in run.points:
            if other is not None and sampling not in other.points:
                raise UserError(
                    f"evaluation.judge.against: {against} was not sampled at {sampling.label()}, "
                    f"as {run.name} was; sample it there, or compare with reference"
                )


def _pairs(
    run: Generations,
    sampling: SamplingPoint,
    others: Mapping[str, Sequence[str]],
    config: EvaluateConfig,
) -> list[Pair]:
    judge = config.evaluation.judge
    rows = run.points[sampling]
    found = []
    for index in evenly(len(rows), judge.max_prompts):
        row: Row = rows[index]
        for sample in range(min(judge.responses, len(row.outputs))):
            theirs = others[row.id]
            found.append(
                Pair(
                    prompt_id=row.id,
                    prompt=row.prompt,
                    response=row.outputs[sample],
                    other=theirs[sample % len(theirs)],
                    run=run.name,
                    sampling=sampling.label(),
                    sample=sample,
                )
            )
    return found


def compare_runs(
    runs: Sequence[Generations],
    references: Mapping[str, str],
    config: EvaluateConfig,
    failures: Failures,
) -> list[Comparison]:
    """Ask the judge about every run and point, and sum its verdicts up.

    Args:
        runs: aligned.
        references: id -> the data set's response, for `against=reference`.
        config: with a judge.
        failures: gets what the judge did not answer. Where it takes no question or is gone, no
            further one is asked.
    """
    found: list[Comparison] = []
    failures.attempt("win rates", lambda: _compare(runs, references, config, found, failures))
    return found


def _compare(
    runs: Sequence[Generations],
    references: Mapping[str, str],
    config: EvaluateConfig,
    found: list[Comparison],
    failures: Failures,
) -> None:
    judge = config.evaluation.judge
    assert judge.model is not None
    other = next((run for run in runs if run.name == judge.against), None)
    client = JudgeClient(judge)
    try:
        with Transcript(Path(config.output_dir) / TRANSCRIPT) as transcript:
            for run in runs:
                if run is other:
                    continue
                for sampling in run.points:
                    theirs: Mapping[str, Sequence[str]]
                    if other is None:
                        theirs = {key: [text] for key, text in references.items()}
                    else:
                        theirs = {row.id: row.outputs for row in other.points[sampling]}
                    judged = judge_pairs(
                        _pairs(run, sampling, theirs, config),
                        client,
                        transcript,
                        model=judge.model,
                        criterion=judge.criterion,
                        max_tokens=judge.max_tokens,
                        concurrency=judge.concurrency,
                    )
                    against = None if other is None else sampling
                    comparison = _comparison(run.name, sampling, against, judged, config)
                    found.append(comparison)
                    if comparison.failed:
                        failures.add(
                            f"win rate of {run.name} at {sampling.label()}",
                            _unanswered(comparison),
                        )
    finally:
        client.close()


def _unanswered(comparison: Comparison) -> EvaluationError:
    first = next(item for item in comparison.undecided if item.outcome == "failed")
    return EvaluationError(
        f"the judge did not answer about {comparison.failed} pairs of {comparison.run} at "
        f"{comparison.sampling.label()} (prompt {first.id!r}: {first.reason})"
    )


def _comparison(
    run: str,
    sampling: SamplingPoint,
    against: SamplingPoint | None,
    judged: Sequence[Judged],
    config: EvaluateConfig,
) -> Comparison:
    judge, bootstrap = config.evaluation.judge, config.evaluation.bootstrap
    counts = Counter(item.outcome for item in judged)
    by_prompt: dict[str, list[Outcome]] = {}
    for item in judged:
        by_prompt.setdefault(item.pair.prompt_id, []).append(item.outcome)
    rates = [WIN_RATE.function(outcomes) for outcomes in by_prompt.values()]
    return Comparison(
        run=run,
        sampling=sampling,
        against=REFERENCE if against is None else judge.against,
        against_sampling=against,
        judge=str(judge.model),
        criterion=judge.criterion,
        win_rate=bootstrap_mean(
            rates,
            resamples=bootstrap.resamples,
            level=bootstrap.level,
            seed=config.seed,
            name="win rate",
        ),
        wins=counts["win"],
        losses=counts["loss"],
        ties=counts["tie"] + counts["inconsistent"],
        inconsistent=counts["inconsistent"],
        unparsable=counts["unparsable"],
        transcript=TRANSCRIPT,
        refused=counts["refused"],
        cut=counts["cut"],
        failed=counts["failed"],
        undecided=[
            Undecided(item.pair.prompt_id, item.pair.sample, item.outcome, item.reason)
            for item in judged
            if item.reason is not None
        ],
    )
