"""`nemo-gdpo doctor --gpu`: the acceptance test of a machine with GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from nemo_gdpo.gpu_check.stages import Stage

OUTPUT = Path("runs/gpu_check")
MINUTES = 25.0


def parser() -> argparse.ArgumentParser:
    """Options after `doctor --gpu`."""
    found = argparse.ArgumentParser(
        prog="nemo-gdpo doctor --gpu",
        description="Checks on this machine's GPUs, in stages, what only a GPU can show: numbers, "
        "speed, memory, checkpoints. A stage that fails is named and the rest is run. The same "
        "command again runs what has no result yet for this machine and these versions.",
    )
    found.add_argument(
        "--output", type=Path, default=OUTPUT,
        help=f"directory of results.json, results.md and a log of each stage (default {OUTPUT})",
    )  # fmt: skip
    found.add_argument("--only", metavar="STAGE,STAGE", help="run these stages alone")
    found.add_argument(
        "--minutes", type=float, default=MINUTES,
        help=f"time for all stages together (default {MINUTES:.0f})",
    )  # fmt: skip
    found.add_argument("--list", action="store_true", help="list the stages and leave")
    return found


def run(arguments: Sequence[str]) -> int:
    """Run the stages; 0 when none failed.

    Raises:
        UserError: there is no GPU, or no such stage.
    """
    try:
        options = parser().parse_args(arguments)
    except SystemExit as ended:  # argparse's way of having printed its help, or of refusing
        return ended.code if isinstance(ended.code, int) else EXIT_DONE
    # Below: they import torch and megatron.
    from nemo_gdpo.gpu_check.stages import STAGES, selected

    if options.list:
        for stage in STAGES:
            print(f"{stage.name:<16} at most {stage.limit_s:4.0f} s  {stage.summary}")
        return EXIT_DONE
    return _check(options.output.absolute(), selected(options.only), options.minutes)


def _check(folder: Path, stages: Sequence[Stage], minutes: float) -> int:
    import torch

    from nemo_gdpo.gpu_check.findings import Status, markdown
    from nemo_gdpo.gpu_check.runner import Check

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        raise UserError(
            "doctor --gpu: torch sees no GPU here; run it on a machine with one, or look with "
            "`nemo-gdpo doctor` at what is missing"
        )
    check = Check(folder, minutes * 60, lambda line: print(line, flush=True))
    results = check.run(stages, gpus=gpus)
    print(f"\n{markdown(results)}\nresults: {folder / 'results.md'} and results.json")
    failed = [result.stage for result in results if result.status is Status.FAILED]
    return EXIT_FAILED if failed else EXIT_DONE
