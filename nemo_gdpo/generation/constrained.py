"""Constraints while sampling: what cannot go together, each row's columns, and the counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_gdpo.config.generation import GenerateConfig
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.constraints import Constraints, Counts, has_checker, has_structure
from nemo_gdpo.data import PairEncoder
from nemo_gdpo.generation.rows import parse_row
from nemo_gdpo.generation.stops import Stops
from nemo_gdpo.generation.store import read_generations
from nemo_gdpo.generation.types import Completed


def sampling_problems(config: GenerateConfig) -> list[Problem]:
    """Settings of sampling that do not go with the constraints."""
    found: list[Problem] = []
    detail = config.generation.logprobs
    if detail != "none" and has_structure(config.constraints):
        reason = (
            f"is {detail}, and where vLLM enforces a constraint it gives log-probabilities among "
            "the allowed tokens, not the model's own"
        )
        remedy = "set none, or constraints.enforce=false"
        found.append(Problem("generation.logprobs", reason, remedy))
    serving = config.generation.backend == "server"
    if config.constraints.grammar is not None and serving and not has_checker():
        reason = "is checked with xgrammar, which this environment does not have"
        remedy = "start the command with the Python of the generation environment"
        found.append(Problem("constraints.grammar", reason, remedy))
    return found


def with_tokenizer_end(stops: Stops, encoding: PairEncoder) -> Stops:
    """The ends of answers that vLLM holds to a form: the tokenizer's own EOS is one of them.

    vLLM's grammars (0.32) take it for an end whatever a request says; an answer that did not end
    there would go on without any form.
    """
    end = encoding.tokenizer.eos_token_id
    if end is None or end in stops.token_ids:
        return stops
    return replace(stops, token_ids=(*stops.token_ids, end))


def verdict_columns(row: Completed, constraints: Constraints | None) -> dict[str, Any]:
    """What a row says of its samples; {} where nothing is asked of them.

    Raises:
        UserError: see `Constraints.check`.
    """
    if constraints is None:
        return {}
    verdicts = [constraints.check(sample.text) for sample in row.samples]
    return {
        "constraints_met": [verdict.met for verdict in verdicts],
        "broken": [list(verdict.broken) for verdict in verdicts],
    }


def counts_of(directory: Path, names: tuple[str, ...]) -> Counts:
    """Counts over all answers of a directory that was sampled under constraints.

    Args:
        directory: `output_dir` of `nemo-gdpo generate`.
        names: of the constraints.

    Raises:
        UserError: a row is damaged, or has no verdicts.
    """
    counts = Counts(names)
    for where, plain in read_generations(directory):
        row, _ = parse_row(plain, where)
        for broken in row.broken or ():
            counts.add(broken)
    return counts


def print_counts(directory: Path, constraints: Constraints) -> None:
    """A line for each constraint, over all rows that are there; none before there is one."""
    counts = counts_of(directory, constraints.names)
    if counts.samples:
        print("\n".join(counts.lines()), flush=True)
