"""`nemo-gdpo validate`: every problem of a run at once, without a GPU and without weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nemo_gdpo.config.packing import packed_row
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.request import Request
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems_of_mapping
from nemo_gdpo.config.world import configured_world_size, model_parallel_size
from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from nemo_gdpo.precisions import described

if TYPE_CHECKING:
    from nemo_gdpo.data.inspect import Inspection

ALL_ROWS = "--all-rows"
"""Flag: read all rows of the data, not the first ones."""


def run(request: Request) -> int:
    """Print the problems, or a summary of the run; returns the exit status."""
    from nemo_gdpo.verbs.start import detect_hardware

    elsewhere = "--elsewhere" in request.flags
    if elsewhere and ALL_ROWS in request.flags:
        raise UserError(f"{ALL_ROWS}: with --elsewhere no rows are read; leave one of them out")
    plain = request.compose(TRAIN).plain
    hardware = None if elsewhere else detect_hardware(plain, joined=False)
    if hardware is not None and int(plain["trainer"]["num_nodes"] or 1) > 1:
        # This may well be the login node of a cluster: its GPUs are not those of the run.
        hardware = replace(hardware, gpus=None)
    config, found = problems_of_mapping(plain, hardware, files=not elsewhere)
    data = None if elsewhere else _look_at_data(config, found, whole=ALL_ROWS in request.flags)
    problems = [*map(str, found), *(data.problems if data else ())]
    if not problems:
        print(_summary(config, {} if data is None else data.splits))
        for remark in data.remarks if data else ():
            print(f"note: {remark}")
        return EXIT_DONE
    for problem in problems:
        print(f"nemo-gdpo: error: {problem}", file=sys.stderr)
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    print(f"nemo-gdpo: {count} found", file=sys.stderr)
    return EXIT_USER_ERROR


def _look_at_data(config: RunConfig, found: list[Problem], *, whole: bool) -> Inspection:
    from nemo_gdpo.data.inspect import FIRST_ROWS, inspect_data

    rows = None if whole else FIRST_ROWS
    return inspect_data(config, rows=rows, faulty={problem.key for problem in found})


def _summary(config: RunConfig, splits: Mapping[str, str]) -> str:
    model, world = config.model, configured_world_size(config)
    copies = world // model_parallel_size(config)
    steps = [
        f"{value} {name}"
        for value, name in (
            (config.trainer.max_steps, "steps"),
            (config.trainer.max_epochs, "epochs"),
        )
        if value is not None
    ]
    return "\n".join(
        [
            "valid",
            f"  objective  {config.objective.name}, reference {config.reference}",
            f"  model      {model.restore_from_path}, {described(config.precision)}",
            f"  data       {config.data.name}: {config.data.train_path}",
            *(f"  {name:<10} {told}" for name, told in splits.items()),
            f"  mesh       {world} ranks: TP{model.tensor_model_parallel_size} x "
            f"PP{model.pipeline_model_parallel_size} x CP{model.context_parallel_size} x "
            f"DP{copies}",
            f"  batch      {model.global_batch_size} pairs {_micro_batches(config, copies)}",
            f"  length     {' or '.join(steps)}, learning rate {config.optim.lr:g}",
            f"  output     {config.output_dir}",
        ]
    )


def _micro_batches(config: RunConfig, copies: int) -> str:
    """How a global batch is cut."""
    row, size = packed_row(config), config.model.micro_batch_size
    if row is None:
        number = config.model.global_batch_size // (copies * size)
        return f"= {copies} x {size} x {number} micro-batches"
    shared = ", each prompt once" if config.data.prefix_sharing else ""
    return f"in packed rows of up to {row} tokens on {copies} data-parallel ranks{shared}"
