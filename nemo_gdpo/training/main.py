"""One rank of `nemo-gdpo train`: compose with NeMo's hydra_runner, train, translate the outcome."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from nemo_gdpo.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REQUEUE,
    EXIT_USER_ERROR,
    UserError,
)


def _say(text: str) -> None:
    """One line on stderr; ranks other than 0 name themselves."""
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"rank {rank}: "
    print(f"nemo-gdpo: {where}error: {text}", file=sys.stderr, flush=True)


def _on_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def guarded(task: Callable[[], int]) -> int:
    """Run `task`; known failures become one line and an exit status instead of a traceback."""
    from nemo_gdpo.training.checkpoint import CheckpointError
    from nemo_gdpo.training.gate import GateError
    from nemo_gdpo.training.metrics import NotFiniteError
    from nemo_gdpo.training.reference import ReferenceWriteError

    try:
        return task()
    except UserError as error:
        # Mistakes in the input are found by the main rank and told to all: once is enough.
        if _on_main_rank():
            _say(str(error))
        return EXIT_USER_ERROR
    except (GateError, NotFiniteError, CheckpointError, ReferenceWriteError) as error:
        # Computed alike, or agreed upon, on every rank.
        if _on_main_rank():
            _say(str(error))
        return EXIT_FAILED
    except OSError as error:
        # On this rank alone (a full disk under metrics.jsonl, say); the launcher stops the others.
        _say(f"{error}; the newest checkpoint is whole: mend this and start again")
        return EXIT_FAILED


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
