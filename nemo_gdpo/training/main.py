"""One rank of `nemo-gdpo train`: compose with NeMo's hydra_runner, train, translate the outcome."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from nemo_gdpo.launch import failures


def guarded(task: Callable[[], int]) -> int:
    """Run `task`; known failures become one line and an exit status instead of a traceback."""
    return failures.guarded(
        task,
        rank=int(os.environ.get("RANK", "0")),
        # A full disk under metrics.jsonl, say.
        disk_remedy="the newest checkpoint is whole: fix this and start again",
    )


def run_with_hydra(overrides: Sequence[str], task: Callable[[DictConfig], int]) -> int:
    """Compose the configuration as hydra_runner does for every NeMo recipe, and run `task`."""
    from nemo.core.config import hydra_runner

    from nemo_gdpo.config import config_dir
    from nemo_gdpo.training.quiet import quiet_libraries, quiet_nemo

    quiet_nemo()

    status = EXIT_FAILED
    failure: Exception | None = None

    @hydra_runner(config_path=str(config_dir()), config_name="train")  # type: ignore[untyped-decorator]
    def entry(cfg: DictConfig) -> None:
        nonlocal status, failure
        quiet_libraries()  # again: Hydra has just configured logging
        try:
            status = task(cfg)
        except Exception as error:  # noqa: BLE001 - raised again below: Hydra would print and exit
            failure = error

    argv = sys.argv
    sys.argv = [argv[0], *overrides]
    try:
        entry()
    finally:
        sys.argv = argv
    if failure is not None:
        raise failure
    return status


def main(overrides: Sequence[str] | None = None) -> int:
    """Train on this rank; returns the exit status."""
    chosen = list(sys.argv[1:] if overrides is None else overrides)

    def task(cfg: DictConfig) -> int:
        def training() -> int:
            from nemo_gdpo.training.run import train
            from nemo_gdpo.training.trainer import Outcome

            return EXIT_DONE if train(cfg) is Outcome.DONE else EXIT_REQUEUE

        return guarded(training)

    return run_with_hydra(chosen, task)


if __name__ == "__main__":
    sys.exit(main())
