"""The tables of what is there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence

from benchmarks.fp8_rehearsal.figures import (
    Step0,
    loss_movement,
    margins,
    moved,
    read_step0,
    residual_movement,
    rms,
    token_movement,
)
from benchmarks.fp8_rehearsal.settings import Options, config_of, step0_file, train_file
from nemo_gdpo.objectives import build_objective

NOT_MEASURED = "not measured"


def over_seeds(values: Sequence[float]) -> str:
    """Mean, and the least and the greatest."""
    if not values:
        return NOT_MEASURED
    ends = f" ({min(values):.2g} to {max(values):.2g})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{ends}"


def step0_tables(options: Options) -> Iterator[str]:
    """By recipe what log-probs do, by objective what residuals and losses do."""
    seen: dict[str, list[tuple[Step0, Step0]]] = {}
    for recipe in options.recipes:
        paths = [(step0_file(options, "fp32", s), step0_file(options, recipe, s))
                 for s in options.seeds]  # fmt: skip
        seen[recipe] = [
            (read_step0(one), read_step0(other))
            for one, other in paths
            if one.is_file() and other.is_file()
        ]
    yield "| recipe | a token's log p | a pair's margin | margin, policy over its own reference |"
    yield "|---|---|---|---|"
    for recipe, found in seen.items():
        yield _row(
            recipe,
            [token_movement(moved(b.policy, a.policy)) for a, b in found],
            [rms(margins(moved(b.policy, a.policy))) for a, b in found],
            [rms(margins(moved(b.policy, b.reference))) for a, b in found],
        )
    yield ""
    yield "| objective | recipe | residual, reference in fp32 | residual, own reference | loss |"
    yield "|---|---|---|---|---|"
    for name in options.objectives:
        objective = build_objective(config_of(options, name, "fp32", 1).objective)
        for recipe, found in seen.items():
            changes = [
                (moved(b.policy, a.policy), moved(b.reference, a.reference)) for a, b in found
            ]
            yield _row(
                f"{name} | {recipe}",
                [residual_movement(objective, p, moved(a.reference, a.reference))
                 for (a, _), (p, _) in zip(found, changes, strict=True)],
                [residual_movement(objective, p, r) for p, r in changes],
                [loss_movement(objective, a, b) for a, b in found],
            )  # fmt: skip


def _row(head: str, *columns: Sequence[float]) -> str:
    return f"| {head} | {' | '.join(over_seeds(column) for column in columns)} |"


def training_table(options: Options) -> Iterator[str]:
    """Validation loss after the updates, and how far it is from that in fp32 on the same seed."""
    steps = f"{options.steps} steps of {options.batch} pairs"
    yield f"| objective | recipe | validation loss after {steps} | less fp32's |"
    yield "|---|---|---|---|"
    for name in options.objectives:
        plain = _validations(options, name, "fp32")
        yield f"| {name} | fp32 | {over_seeds([v for v, _ in plain.values()])} | |"
        for recipe in options.recipes:
            found = _validations(options, name, recipe)
            gaps = [found[s][0] - plain[s][0] for s in found if s in plain]
            mark = "" if all(passed for _, passed in found.values()) else " (stopped at step 0)"
            values = over_seeds([value for value, _ in found.values()])
            yield f"| {name} | {recipe}{mark} | {values} | {over_seeds(gaps)} |"


def _validations(options: Options, name: str, recipe: str) -> dict[int, tuple[float, bool]]:
    paths = {seed: train_file(options, name, recipe, seed) for seed in options.seeds}
    read = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.is_file()}
    return {seed: (one["validation"], one["passed_step0"]) for seed, one in read.items()}
