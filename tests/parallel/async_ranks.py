"""One rank that writes checkpoints while it trains on.

`python -m tests.parallel.async_ranks FOLDER CASE`, under RANK and WORLD_SIZE:

    plain, zero   TP2, or the distributed optimizer: four updates, with checkpoints of the second
                  written at once (`sync`) and beside the last two (`async`); prints what it sees
    fails         the last rank cannot write the checkpoint of the second update
    error         training fails on all ranks while a checkpoint is on its way
    killed        every rank is killed while it writes
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.errors import RunError
from nemo_gdpo.io.hashed_file import HashedFile
from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.models.sharded_save import ShardedSave
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.mesh import join_world, leave_mesh, leave_world
from nemo_gdpo.training.run import Run
from nemo_gdpo.training.trainer import PreferenceTrainer
from tests.parallel.meshes import TP2, ZERO
from tests.parallel.settings import dataset, overrides

MODEL = "untied"
ASYNC = ("trainer.async_save=true", "trainer.save_interval=1")


def trainer_of(folder: Path, name: str, *more: str) -> PreferenceTrainer:
    """A run that has not begun; its checkpoints are in `FOLDER/NAME/checkpoints`."""
    given = [
        *overrides("dpo"),
        "trainer.max_steps=4",
        f"model.restore_from_path={folder / MODEL / 'reference'}",
        f"output_dir={folder / name}",
        *more,
    ]
    run = Run.build(TRAIN.parse(compose(given, TRAIN).plain), data={"train": dataset()})
    stop = run.stop_request()
    return run.build_trainer(run.prepare_reference(stop), stop)


def weights(trainer: PreferenceTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for _, p in trainer.model.named_policy_parameters()]


class Held:
    """Writing waits for the test."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self._write = ShardedSave.write

        def held(save: ShardedSave) -> None:
            self.begun.set()
            assert self.go.wait(120)
            self._write(save)

        ShardedSave.write = held  # type: ignore[method-assign]

    def release(self) -> None:
        """Writing goes on, and later ones do not wait."""
        ShardedSave.write = self._write  # type: ignore[method-assign]
        self.go.set()


def steps(trainer: PreferenceTrainer, count: int) -> None:
    for _ in range(count):
        trainer.train_step()


def save(trainer: PreferenceTrainer) -> None:
    trainer.save()


def same(folder: Path, *more: str) -> dict[str, Any]:
    """Two runs that differ in when they write; what a signal to all processes does to the next."""
    at_once = trainer_of(folder, "sync", *more)
    steps(at_once, 2)
    save(at_once)
    # What a scheduler does when it signals all processes of a job.
    for child in psutil.Process().children(recursive=True):
        child.send_signal(signal.SIGTERM)
    steps(at_once, 2)
    save(at_once)
    trained = weights(at_once)
    leave_mesh()

    beside = trainer_of(folder, "async", *more, *ASYNC)
    final = folder / "async" / "checkpoints" / "step_00000002"
    with beside.checkpointer:
        held = Held()
        steps(beside, 2)
        save(beside)
        before = final.exists()
        beside.checkpointer.poll()
        steps(beside, 2)
        during = final.exists()
        held.release()
        save(beside)  # finishes the one before, and starts the next
        after = final.exists()
        last = (folder / "async" / "checkpoints" / "step_00000004").exists()
        while not (folder / "async" / "checkpoints" / "step_00000004").exists():
            beside.checkpointer.poll()
    return {
        "there": [before, during, after, last],
        "weights": all(map(torch.equal, trained, weights(beside))),
        "threads": [t.name for t in threading.enumerate() if t.name == "checkpoint"],
        "timings": beside.checkpointer.timings,
        "children": len(psutil.Process().children(recursive=True)),
    }


def fails(folder: Path) -> dict[str, Any]:
    """The first checkpoint is whole; the last rank's disk is full for the second."""
    trainer = trainer_of(folder, "fails", *TP2, *ASYNC)
    told = []
    try:
        with trainer.checkpointer:
            steps(trainer, 1)
            save(trainer)
            steps(trainer, 1)
            trainer.checkpointer.finish()
            if dist.get_rank() == dist.get_world_size() - 1:

                def full(*_: Any) -> int:
                    raise OSError(28, "No space left on device")

                HashedFile.write = full  # type: ignore[method-assign]
            save(trainer)
            steps(trainer, 1)
            trainer.checkpointer.finish()
    except RunError as error:
        told = [type(error).__name__, str(error)]
    return {"told": told}


def error(folder: Path) -> dict[str, Any]:
    """What is on its way is finished, and the error is what training ends with."""
    trainer = trainer_of(folder, "error", *ASYNC)
    told = ""
    try:
        with trainer.checkpointer:
            steps(trainer, 1)
            save(trainer)
            problem = RunError("the loss is not finite")
            problem.agreed = True
            raise problem
    except RunError as found:
        told = str(found)
    return {"told": told}


def killed(folder: Path) -> dict[str, Any]:
    """The first checkpoint is whole; in the middle of the second the process is gone."""
    trainer = trainer_of(folder, "killed", *TP2, *ASYNC)
    steps(trainer, 1)
    save(trainer)
    trainer.checkpointer.finish()
    steps(trainer, 1)
    write, begun = HashedFile.write, threading.Event()

    def half(file: HashedFile, piece: Any) -> int:
        if file.tell() > 10_000:
            begun.set()
            threading.Event().wait()
        return write(file, piece)

    HashedFile.write = half  # type: ignore[method-assign]
    save(trainer)
    assert begun.wait(60)
    dist.barrier()
    print(json.dumps({"killed": True}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


CASES = {
    "plain": lambda folder: same(folder, *TP2),
    "zero": lambda folder: same(folder, *ZERO),
    "fails": fails,
    "error": error,
    "killed": killed,
}


def main(folder: Path, case: str) -> None:
    """See above."""
    torch.set_num_threads(1)
    quiet_libraries()
    join_world(current_platform(), timeout_minutes=2)
    print("found " + json.dumps(CASES[case](folder / case)), flush=True)
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
