"""What FP8 would do to each objective, rehearsed in fp32 arithmetic on any machine.

    python -m benchmarks.fp8_rehearsal                        some of it: 20 minutes of one core
    python -m benchmarks.fp8_rehearsal --full                 all of it: many hours on a CPU
    python -m benchmarks.fp8_rehearsal --full --steps 0       rounding at step 0 alone, all of it
    python -m benchmarks.fp8_rehearsal --full --objectives dpo gdpo_tb --seeds 1 --minutes 120

Step 0: log-probs of pairs under the recipes (`precision=fp8_rehearsal_...`) against those in fp32;
one pass a recipe serves all objectives. Then the validation loss after `--steps` updates. Every job
leaves a file in `--folder`, and the same command goes on where it was stopped. Without `--full`:
three objectives, one recipe, one seed, updates of 2 pairs, and no job begins after 20 minutes.
Prints the tables of what is there; `RESULTS.md` has what they said, and where. The model and the
pairs are those of `make demo`, unless others are given.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.fp8_rehearsal.jobs import jobs
from benchmarks.fp8_rehearsal.settings import (
    BATCH,
    OBJECTIVES,
    SOME_OBJECTIVES,
    SOME_RECIPES,
    Options,
)
from benchmarks.fp8_rehearsal.tables import step0_tables, training_table
from nemo_gdpo.errors import UserError
from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.precisions import REHEARSALS


def demo_material(folder: Path, model: Path | None) -> tuple[Path, Path]:
    """Model and pairs of `make demo`."""
    from examples.film_reviews.inputs import base_model, rated_snippets
    from examples.film_reviews.pairs import Pairing
    from examples.film_reviews.prepare import prepare

    folder.mkdir(parents=True, exist_ok=True)
    if model is None:
        base_model(folder / "base-hf")
    prepare(rated_snippets(), folder / "data", Pairing())
    return model or folder / "base-hf", folder / "data"


def _options(argv: list[str] | None) -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fp8_rehearsal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/fp8_rehearsal"), help="default: %(default)s")
    add("--model", type=Path, help="Hugging Face directory; default: the demo's")
    add("--steps", type=int, default=30, help="updates; 0: step 0 alone; default: %(default)s")
    add("--full", action="store_true", help="all objectives and recipes, 3 seeds, 8 pairs, no end")
    add("--seeds", type=int, help="how many, from 1 on; default: 1, with --full 3")
    add("--objectives", nargs="+", choices=list(OBJECTIVES), help="default: three, or all")
    recipes = list(REHEARSALS.values())
    add("--recipes", nargs="+", choices=recipes, help="default: tensorwise, or all")
    add("--batch", type=int, help="pairs of an update; default: 2, with --full 8")
    add("--minutes", type=float, help="begin no job after so many; default: 20, or no end")
    add("--batches", type=int, default=4, help="of 8 pairs, at step 0; default: %(default)s")
    add("--limit-validation", type=int, default=2, help="batches; default: %(default)s")
    add("--tables", action="store_true", help="run nothing, print what is there")
    add("--job", help=argparse.SUPPRESS)
    add("--no-gate", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    _fill(given, recipes)
    folder = given.folder.absolute()
    if given.job or given.tables:
        model, data = given.model or folder / "base-hf", folder / "data"
    else:
        model, data = demo_material(folder, given.model)
    options = Options(
        folder, model.absolute(), data, given.steps, tuple(range(1, given.seeds + 1)),
        tuple(given.objectives), tuple(given.recipes), given.batches, given.limit_validation,
        given.batch,
    )  # fmt: skip
    return options, given


def _fill(given: argparse.Namespace, recipes: list[str]) -> None:
    """What was not said: all, or what fits into 20 minutes."""
    some = {
        "seeds": 1, "objectives": SOME_OBJECTIVES, "recipes": SOME_RECIPES, "batch": 2,
        "minutes": 20.0,
    }  # fmt: skip
    whole = {
        "seeds": 3, "objectives": OBJECTIVES, "recipes": recipes, "batch": BATCH,
        "minutes": math.inf,
    }  # fmt: skip
    for name, value in (whole if given.full else some).items():
        if getattr(given, name) is None:
            setattr(given, name, value)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and print the tables.

    Raises:
        UserError: a job failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options, given = _options(argv)
    todo = list(jobs(options, gate=not given.no_gate))
    if given.job:
        quiet_libraries()
        next(act for name, _, act in todo if name == given.job)()
        return
    arguments = sys.argv[1:] if argv is None else argv
    begun = time.monotonic()
    missing = [one for one in todo if not one[1].is_file()]
    for number, (name, _, _) in enumerate([] if given.tables else missing):
        if (time.monotonic() - begun) / 60 > given.minutes:
            left = f"{len(missing) - number} jobs are left"
            print(f"{given.minutes:g} minutes are over, {left}; the same command goes on")
            break
        print(f"job: {name}", flush=True)
        command = [sys.executable, "-m", "benchmarks.fp8_rehearsal", *arguments, "--job", name]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"job {name} failed; the same command begins with it again")
    for line in step0_tables(options):
        print(line)
    if options.steps:
        print()
        for line in training_table(options):
            print(line)


if __name__ == "__main__":
    main()
