"""A rank of `nemo_gdpo.verbs.rank` that, if it is the one, hangs for ever somewhere.

`python -m tests.parallel.stuck_main CASE RANK CONFIG` under RANK and WORLD_SIZE, or without them:
then it starts three such ranks, as `nemo-gdpo train` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from nemo_gdpo.io.processes import end_with_parent

LIMIT_MINUTES = 0.15
RANKS = 3


def hang(*arguments: Any, **named: Any) -> Any:
    """Neither computes nor reads nor writes."""
    del arguments, named
    time.sleep(3600)


def _computation() -> Any:
    """In a step, where the others wait in a collective."""
    from nemo_gdpo.training.trainer import PreferenceTrainer

    original = PreferenceTrainer._per_pair

    def per_pair(self: PreferenceTrainer, *arguments: Any, **named: Any) -> Any:
        if self.progress.step == 1:
            hang()
        return original(self, *arguments, **named)

    return mock.patch.object(PreferenceTrainer, "_per_pair", per_pair)


def _stopped() -> Any:
    """The whole process stands still, threads and all, as on a machine that is gone."""
    from nemo_gdpo.training.trainer import PreferenceTrainer

    original = PreferenceTrainer._per_pair

    def per_pair(self: PreferenceTrainer, *arguments: Any, **named: Any) -> Any:
        if self.progress.step == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(self, *arguments, **named)

    return mock.patch.object(PreferenceTrainer, "_per_pair", per_pair)


def _main_stage() -> Any:
    """In what rank 0 does alone."""
    from nemo_gdpo.training import datasets

    return mock.patch.object(datasets, "build_split", hang)


def _own_stage() -> Any:
    """In what each rank does by itself."""
    from nemo_gdpo.training.checkpoint_save import Saving

    return mock.patch.object(Saving, "_write_rng", hang)


def _log() -> Any:
    """Between two steps: a log on a file system that is gone."""
    from nemo_gdpo.training.loggers import MetricsLog

    return mock.patch.object(MetricsLog, "write", hang)


def _busy() -> Any:
    """Rank 0 takes longer than the limit, and works all the time."""
    from nemo_gdpo.training import datasets

    original = datasets.build_split

    def slowly(*arguments: Any, **named: Any) -> Any:
        limit = time.monotonic() + 2 * 60 * LIMIT_MINUTES
        while time.monotonic() < limit:
            hashlib.sha256(b"x" * 100_000).digest()
        return original(*arguments, **named)

    return mock.patch.object(datasets, "build_split", slowly)


CASES: dict[str, Callable[[], Any]] = {
    "computation": _computation,
    "stopped": _stopped,
    "main stage": _main_stage,
    "own stage": _own_stage,
    "log": _log,
    "busy": _busy,
}


def main(case: str, victim: str, config: Path) -> int:
    """Train, or hang."""
    from nemo_gdpo.platform import current_platform
    from nemo_gdpo.training import mesh
    from nemo_gdpo.verbs import rank

    current_platform()
    set_limit = mesh.set_limit
    with (
        # The ranks may start minutes apart on a busy machine: only what comes then is limited.
        mock.patch.object(mesh, "set_limit", lambda minutes: set_limit(LIMIT_MINUTES)),
        CASES[case]() if os.environ["RANK"] == victim else contextlib.nullcontext(),
    ):
        return rank.main("train_plain", config)


if __name__ == "__main__":
    if "RANK" in os.environ:
        end_with_parent(signal.SIGKILL)  # of a test that has waited long enough
        sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
    from nemo_gdpo.launch.ranks import launch_ranks

    command = [sys.executable, "-m", "tests.parallel.stuck_main", *sys.argv[1:]]
    sys.exit(launch_ranks(RANKS, command))
