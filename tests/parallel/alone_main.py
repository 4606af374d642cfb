"""A rank of `nemo_gdpo.verbs.rank` on which, if it is the one, something fails alone.

`python -m tests.parallel.alone_main CASE RANK CONFIG` under RANK and WORLD_SIZE, or without them:
then it starts two such ranks, as `nemo-gdpo train` does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

STEP = 1
"""In which training fails: the second."""


def _fails_in_training(error: Callable[[], Exception]) -> Any:
    from nemo_gdpo.training.trainer import PreferenceTrainer

    step = PreferenceTrainer.train_step

    def fail(self: PreferenceTrainer) -> dict[str, Any]:
        if self.progress.step == STEP:
            raise error()
        return step(self)

    return mock.patch.object(PreferenceTrainer, "train_step", fail)


def _bug() -> Any:
    return _fails_in_training(lambda: KeyError("injected"))


def _mistake() -> Any:
    from nemo_gdpo.errors import UserError

    return _fails_in_training(lambda: UserError("injected; mend it"))


def _disk() -> Any:
    return _fails_in_training(lambda: OSError(28, "injected"))


def _before_collectives() -> Any:
    """The others enter megatron's collectives of saving, and this rank does not."""
    from megatron.core import dist_checkpointing

    return mock.patch.object(dist_checkpointing, "save", side_effect=KeyError("injected"))


def _between_collectives() -> Any:
    """Rank 0 cannot write the last small file, before which the others wait."""
    from megatron.core.dist_checkpointing import serialization

    return mock.patch.object(serialization, "save_config", side_effect=OSError(28, "injected"))


def _no_device() -> Any:
    from nemo_gdpo.errors import UserError
    from nemo_gdpo.platform.cpu import CpuPlatform

    return mock.patch.object(CpuPlatform, "device", side_effect=UserError("injected; mend it"))


def _no_import() -> Any:
    """A module that training imports is damaged on this node."""
    return mock.patch.dict(sys.modules, {"nemo_gdpo.training.run": None})


CASES: dict[str, Callable[[], Any]] = {
    "bug": _bug,
    "mistake": _mistake,
    "disk": _disk,
    "before collectives": _before_collectives,
    "between collectives": _between_collectives,
    "no device": _no_device,
    "no import": _no_import,
}


def main(case: str, victim: str, config: Path) -> int:
    """Train, or fail."""
    from nemo_gdpo.control import alone
    from nemo_gdpo.platform import current_platform
    from nemo_gdpo.verbs import rank

    current_platform()
    alone.PATIENCE_SECONDS = 2.0
    if os.environ["RANK"] != victim:
        return rank.main("train_plain", config)
    with CASES[case]():
        return rank.main("train_plain", config)


if __name__ == "__main__":
    if "RANK" in os.environ:
        sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
    from nemo_gdpo.launch.ranks import launch_ranks

    sys.exit(launch_ranks(2, [sys.executable, "-m", "tests.parallel.alone_main", *sys.argv[1:]]))
