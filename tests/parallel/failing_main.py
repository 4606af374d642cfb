"""One of two ranks: a run that succeeds, then runs in each of which one stage fails on one rank.

`python -m tests.parallel.failing_main FOLDER` under RANK and WORLD_SIZE. FOLDER holds `model` and
`train.jsonl`; `FOLDER/rank<N>.json` gets what became of every run: exit status, stderr, seconds. A
run that hangs ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.control import agree
from nemo_gdpo.errors import UserError
from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training import run as run_module
from nemo_gdpo.training.mesh import join_world, leave_mesh, leave_world
from nemo_gdpo.verbs.rank import run_task
from tests.parallel.failures import ADAPTERS, FAILURES, NEMO, PACKAGE, RESIDENT, STARTED, Failing
from tests.support.commands import common, steps

HANGS = 120.0
"""Seconds after which a run is taken to hang."""
ERRORS: dict[str, Callable[[], Exception]] = {
    "user": lambda: UserError("injected; mend it"),
    "disk": lambda: OSError(28, "injected"),
    "bug": lambda: KeyError("injected"),
}


def configuration(folder: Path, output: Path, *more: str) -> RunConfig:
    """A run of two data-parallel ranks and two updates."""
    data = folder / "train.jsonl"
    more = tuple(setting.replace("{folder}", str(folder)) for setting in more)
    given = common(folder / "model", data, output, *steps(2), "trainer.devices=2")
    return TRAIN.parse(compose([*given, f"data.validation_path={data}", *more], TRAIN).plain)


@contextlib.contextmanager
def failing(case: Failing) -> Iterator[None]:
    """The function of a case fails on this rank."""
    module, _, name = case.place.partition(":")
    *owners, last = name.split(".")
    owner: Any = importlib.import_module(f"{PACKAGE}.{module}")
    for step in owners:
        owner = vars(owner)[step]
    original = getattr(owner, last)

    calls = 0

    def fail(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if case.after or calls < case.call:
            value = original(*arguments, **named)
            if calls < case.call:
                return value
        raise ERRORS[case.kind]()

    # A static method, so that a class's function gets the same arguments as the module's.
    with mock.patch.object(owner, last, staticmethod(fail) if owners else fail):
        yield


def carried_out(task: str, config: RunConfig) -> dict[str, Any]:
    """What becomes of a run on this rank."""
    said, begun = io.StringIO(), time.perf_counter()
    faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.__stderr__)
    with contextlib.redirect_stderr(said):
        status = run_task(task, config)
    faulthandler.cancel_dump_traceback_later()
    leave_mesh()
    return {"status": status, "err": said.getvalue(), "seconds": time.perf_counter() - begun}


def copied(folder: Path, number: int) -> Path:
    """A copy of the finished run, for one that resumes it."""
    output = folder / f"run{number}"
    if dist.get_rank() == 0:
        shutil.copytree(folder / "whole", output)
    dist.barrier()
    return output


def all_stages(folder: Path, results: dict[str, Any]) -> list[str]:
    """Runs that succeed, between them through every stage there is; returns the stages."""
    stages: set[str] = set()
    tell = agree._failures

    def recorded(stage: str, *failure: Any) -> Any:
        stages.add(stage)
        return tell(stage, *failure)

    whole = folder / "whole"
    with mock.patch.object(agree, "_failures", recorded):
        for task, config in (
            ("train_plain", configuration(folder, whole, "export_hf=true")),
            ("train", configuration(folder, whole, *NEMO)),
            ("train_plain", configuration(folder, folder / "resident", *RESIDENT)),
            ("train_plain", configuration(folder, folder / "adapters", *ADAPTERS)),
            ("train_plain", configuration(folder, folder / "started", *STARTED)),
        ):
            results[f"{task} {config.output_dir} {config.reference}"] = carried_out(task, config)
    shutil.rmtree(whole / "hf", ignore_errors=True)
    (whole / "model.nemo").unlink(missing_ok=True)
    return sorted(stages)


def main(folder: Path) -> None:
    """All runs, in one world."""
    quiet_libraries()
    join_world(current_platform(), timeout_minutes=5)
    rank = dist.get_rank()
    found: dict[str, Any] = {"succeeds": {}, "fails": {}}
    # The next run goes on in the same world.
    with mock.patch.object(run_module, "leave_world", lambda: None):
        found["stages"] = all_stages(folder, found["succeeds"])
        for number, case in enumerate(FAILURES):
            for victim in case.victims:
                output = folder / f"run{number}-{victim}"
                if case.resumes:
                    output = copied(folder, 10 * number + victim)
                config = configuration(folder, output, *case.settings)
                with failing(case) if rank == victim else contextlib.nullcontext():
                    result = carried_out(case.task, config)
                found["fails"][f"{case.key} on {victim}"] = result
                (folder / f"rank{rank}.json").write_text(json.dumps(found))
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
