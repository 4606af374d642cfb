"""One rank that writes and loads the distributed optimizer's state.

`python -m tests.parallel.optimizer_ranks FOLDER FROM`: two updates (or, with FROM, the state of the
checkpoint there), then `FOLDER/step_00000001`, gathered on one rank, and `FOLDER/step_00000002`,
gathered on all. Prints how many optimizer tensors this rank held for each.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.models import weights
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training import checkpoint
from nemo_gdpo.training.mesh import join_world, leave_world
from nemo_gdpo.training.run import Run
from tests.parallel.meshes import ZERO
from tests.parallel.settings import dataset, overrides

MODEL = "untied"


class Warned(logging.Handler):
    """Prints what megatron finds odd about the state."""

    def emit(self, record: logging.LogRecord) -> None:
        print("warned:", record.getMessage())


def tensors(state: Any) -> int:
    """Sharded tensors in a nested state."""
    if isinstance(state, dict):
        return sum(tensors(value) for value in state.values())
    return int(hasattr(state, "key") and "optimizer.state" in state.key)


def save(trainer: Any, step: int) -> None:
    """Write a checkpoint and print what this rank held for it."""
    checkpointer = trainer.checkpointer
    checkpointer.save(step, {"world_size": dist.get_world_size()})
    held = tensors(checkpointer._sharded_state(is_loading=False)["optimizer"])
    print(f"step {step}: held {held}", flush=True)


def main(root: Path, source: str) -> None:
    """See above."""
    torch.set_num_threads(1)
    quiet_libraries()
    validation = logging.getLogger("megatron.core.dist_checkpointing.validation")
    validation.setLevel(logging.WARNING)
    validation.addHandler(Warned())
    join_world(current_platform(), timeout_minutes=2)
    given = [
        *overrides("dpo"),
        *ZERO,
        f"model.restore_from_path={root / MODEL / 'reference'}",
        f"output_dir={root / 'output'}",
    ]
    config = TRAIN.parse(compose(given, TRAIN).plain)
    run = Run.build(config, data={"train": dataset()})
    with run.stop_request() as stop:
        trainer = run.build_trainer(run.prepare_reference(stop), stop)
        if source:
            trainer.checkpointer.load(Path(source))
        else:
            trainer.train_step()
            trainer.train_step()
        trainer.checkpointer.root = root / f"of{dist.get_world_size()}{'again' if source else ''}"
        save(trainer, 1)
        checkpoint.OPTIMIZER_METADATA = weights.SHARDING_METADATA
        save(trainer, 2)
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
