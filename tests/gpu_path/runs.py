"""The runs of one rank: `train` from its command line, or both kinds of layers side by side."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from nemo_gdpo.cli import main as command_line
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.training.mesh import leave_world
from nemo_gdpo.training.run import Run
from tests.gpu_path import worlds
from tests.gpu_path.cases import Case, overrides
from tests.gpu_path.compiled.calls import CALLS
from tests.gpu_path.recorder import Recorder


def train(case: Case, folder: Path, output: Path) -> dict[str, Any]:
    """Run the command line, and note what the loop did.

    Raises:
        AssertionError: it ended with another status than 0.
    """
    worlds.begin()
    CALLS.clear()
    given = overrides(case, folder, case.layers)
    with Recorder() as recorder:
        status = command_line(["train", f"output_dir={output}", *given])
    assert status == 0, f"train ended with status {status}"
    return {"steps": recorder.steps, "quantized": recorder.quantized, "calls": dict(CALLS)}


def steps_of(case: Case, folder: Path, output: Path, layers: str) -> list[dict[str, Any]]:
    """The same without `train`'s refusals, from the parts that it is made of."""
    given = [*overrides(case, folder, layers), f"output_dir={output}", f"model.layers={layers}"]
    # Transformer Engine multiplies fp32 in TF32; the stand-in does not.
    with mock.patch("nemo_gdpo.platform.layers.contradiction", lambda *_: None):
        run = Run.build(TRAIN.parse(compose(given, TRAIN).plain))
        with run.stop_request() as stop, Recorder() as recorder:
            trainer = run.build_trainer(run.prepare_reference(stop), stop)
            trainer.train_step()
            trainer.train_step()
    leave_world()
    return recorder.steps


def both(case: Case, folder: Path, output: Path) -> dict[str, Any]:
    """Two updates by the layers of Transformer Engine, and by the local ones."""
    found: dict[str, Any] = {}
    for layers in ("transformer_engine", "local"):
        worlds.begin()
        CALLS.clear()
        found[layers] = {
            "steps": steps_of(case, folder, output / layers, layers),
            "calls": dict(CALLS),
        }
    return found


def run(case: Case, folder: Path) -> dict[str, Any]:
    """What a case finds on this rank.

    Args:
        case: one of `cases`.
        folder: with the inputs.
    """
    kind = "local" if case.layers == "local" else "rehearsed"
    output = folder / kind / re.sub(r"\W+", "_", case.key)
    if case.layers != "local":
        from tests.gpu_path import gpu

        gpu.become(case.capability, apex=case.apex)
    if case.layers == "both":
        return both(case, folder, output)
    found = train(case, folder, output) | {"output": str(output)}
    if case.resumes:
        if os.environ["RANK"] == "0":
            shutil.rmtree(max((output / "checkpoints").glob("step_*")))
        found["resumed"] = train(case, folder, output)
    return found
