"""The program of one rank: `python -m nemo_gdpo.verbs.rank train|reference|margins CONFIG`.

The configuration was composed and checked by the process that started the ranks. Only training
builds NeMo's classes, so a rank that computes a reference never imports nemo.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, RunError, Stopped, UserError
from nemo_gdpo.importing import own_process, uncollected
from nemo_gdpo.io.processes import end_with_parent
from nemo_gdpo.launch.failures import guarded, report, report_alone, say
from nemo_gdpo.launch.rank_log import record_failure
from nemo_gdpo.launch.ranks import FAILURE
from nemo_gdpo.launch.signals import ALL_SIGNALS, BEFORE_TRAINING, StopRequest, was_asked_to_stop

# All else is imported where it is needed: a signal should find its handler early.
if TYPE_CHECKING:
    from nemo_gdpo.config.schema import RunConfig
    from nemo_gdpo.training.run import Run


DISK_REMEDY = "the newest checkpoint is complete: fix this and start again"
"""A full disk under metrics.jsonl, say."""


def run_task(task: str, config: RunConfig) -> int:
    """Carry out `task` on this rank; returns the exit status.

    A rank of several that fails alone says why and ends its process here and now: the others wait
    for it, and only the launcher can end them.
    """
    return _guarded(lambda: TASKS[task](config))


def _guarded(task: Callable[[], int], note: Callable[[str], object] = lambda reason: None) -> int:
    """Run a task; returns its exit status, or that of the failure that ended it.

    Args:
        task: of this rank.
        note: told the reason of a known failure, by one rank.
    """
    rank = int(os.environ.get("RANK", "0"))

    def carried_out() -> int:
        try:
            return task()
        except Stopped as error:
            _stop_alone(error, rank)
            raise
        except Exception as error:  # noqa: BLE001 - sorted by who knows of it
            record_failure(error)
            of_all = _of_all_ranks(error, rank, note)
        if rank == 0 and isinstance(of_all, UserError | RunError):
            note(str(of_all))
        raise of_all

    return guarded(carried_out, rank=rank, disk_remedy=DISK_REMEDY)


def _stop_alone(error: Stopped, rank: int) -> None:
    """One of several ranks that was stopped at a place of its own ends here and now.

    Its last words in a normal exit could wait for the others, which end in the same way.
    """
    from nemo_gdpo.control.alone import end_process, is_one_of_several

    if is_one_of_several() and not error.agreed:
        end_process(report(error, rank=rank))


def _of_all_ranks(
    error: Exception, rank: int, note: Callable[[str], object]
) -> Exception | Stopped:
    """The error that every rank ends with. If this one failed alone, its process ends here."""
    from nemo_gdpo.control.alone import end_process, is_one_of_several, note_of_another
    from nemo_gdpo.control.start import refuse_to_start
    from nemo_gdpo.control.watch import let_the_watch_end

    if isinstance(error, UserError | RunError) and error.agreed:
        return error
    let_the_watch_end()
    if was_asked_to_stop() and isinstance(error, RuntimeError | ConnectionError):
        # A rank that was stopped, too, has gone, and the connection to it is closed.
        stopped = Stopped(BEFORE_TRAINING.replace("{signal}", "a signal"))
        _stop_alone(stopped, rank)
        return stopped
    if not is_one_of_several():
        told = refuse_to_start(error)
        if told is not None:
            return told
    failed = note_of_another()
    if failed is not None:  # a connection to it was closed, most likely
        if rank == 0:
            what = "was stopped" if failed.status == EXIT_REQUEUE else "failed and says why"
            say(f"rank {failed.rank} {what}; all ranks end")
        end_process(failed.status)
    if isinstance(error, UserError | RunError):
        note(f"rank {rank}: {error}")
    end_process(report_alone(error, rank=rank, disk_remedy=DISK_REMEDY))


def _run_class() -> type[Run]:
    with uncollected():
        from nemo_gdpo.training.run import Run
    return Run


def _train(config: RunConfig) -> int:
    with uncollected():
        from nemo_gdpo.nemo.classes import model_class

        nemo_class = model_class(config.objective.name)
    return _trained(_run_class().build(config, nemo_class=nemo_class))


def _train_plain(config: RunConfig) -> int:
    return _trained(_run_class().build(config))


def _trained(run: Run) -> int:
    from nemo_gdpo.training.parts import Outcome

    return EXIT_DONE if run.train() is Outcome.DONE else EXIT_REQUEUE


def _reference(config: RunConfig) -> int:
    _run_class().build(config).compute_reference()
    return EXIT_DONE


def _margins(config: RunConfig) -> int:
    from nemo_gdpo.training.margins import write_margins

    write_margins(_run_class().build(config))
    return EXIT_DONE


TASKS: dict[str, Callable[[RunConfig], int]] = {
    "train": _train,
    "train_plain": _train_plain,
    "reference": _reference,
    "margins": _margins,
}
"""Task -> what this rank does; returns the exit status, or raises."""


def main(task: str, file: Path) -> int:
    """Carry out `task` with the configuration in `file`; returns the exit status.

    Why it failed stands beside the file as well, for a caller in Python.
    """

    def note(reason: str) -> None:
        (file.parent / FAILURE).write_text(reason, encoding="utf-8")

    def carried_out() -> int:
        from nemo_gdpo.config.composition import read_config
        from nemo_gdpo.config.schema import TRAIN

        return TASKS[task](read_config(file, TRAIN))

    rank = int(os.environ.get("RANK", "0"))
    with StopRequest(ALL_SIGNALS, interrupts=BEFORE_TRAINING, rank=rank):
        return _guarded(carried_out, note)


if __name__ == "__main__":
    own_process()
    end_with_parent(signal.SIGTERM)  # it keeps what it has, as at any signal
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
