"""The program of one rank: `python -m nemo_gdpo.verbs.rank train|reference CONFIG`.

The configuration was composed and checked by the process that started the ranks. Only training
builds NeMo's classes, so a rank that computes a reference never imports nemo.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, RunError, UserError
from nemo_gdpo.launch.failures import guarded
from nemo_gdpo.verbs.start import FAILURE

if TYPE_CHECKING:
    from nemo_gdpo.training.run import Run


def run_task(task: str, config: RunConfig) -> int:
    """Carry out `task` on this rank; returns the exit status."""
    return _guarded(lambda: TASKS[task](config))


def _guarded(task: Callable[[], int]) -> int:
    return guarded(
        task,
        rank=int(os.environ.get("RANK", "0")),
        # A full disk under metrics.jsonl, say.
        disk_remedy="the newest checkpoint is complete: fix this and start again",
    )


def _train(config: RunConfig) -> int:
    from nemo_gdpo.nemo.classes import model_class
    from nemo_gdpo.training.run import Run

    return _trained(Run.build(config, nemo_class=model_class(config.objective.name)))


def _train_plain(config: RunConfig) -> int:
    from nemo_gdpo.training.run import Run

    return _trained(Run.build(config))


def _trained(run: Run) -> int:
    from nemo_gdpo.training.trainer import Outcome

    return EXIT_DONE if run.train() is Outcome.DONE else EXIT_REQUEUE


def _reference(config: RunConfig) -> int:
    from nemo_gdpo.training.run import Run

    Run.build(config).compute_reference()
    return EXIT_DONE


TASKS: dict[str, Callable[[RunConfig], int]] = {
    "train": _train,
    "train_plain": _train_plain,
    "reference": _reference,
}
"""Task -> what this rank does; returns the exit status, or raises."""


def main(task: str, file: Path) -> int:
    """Carry out `task` with the configuration in `file`; returns the exit status.

    Why it failed stands beside the file as well, for a caller in Python.
    """
    config = read_config(file, TRAIN)

    def noted() -> int:
        try:
            return TASKS[task](config)
        except (UserError, RunError) as error:
            if os.environ.get("RANK", "0") == "0":
                (file.parent / FAILURE).write_text(str(error), encoding="utf-8")
            raise

    return _guarded(noted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
