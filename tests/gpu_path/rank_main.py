"""One rank of a rehearsal: the project's own `train` for every case, one after the other.

`python -m tests.gpu_path.rank_main CASES.json` under RANK and WORLD_SIZE. The file names the folder
of the inputs, Transformer Engine's Python tree (null for the local layers), the keys of the cases,
and a port for each. The rank writes `FOLDER/<layers>.rank<rank>.json`, key of the case -> what it
found. A case that fails is written down with its traceback and ends the launch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.gpu_path.cases import ENGINE, LOCAL, REHEARSED, Case, overrides
from tests.gpu_path.compiled.calls import CALLS


def _train(case: Case, folder: Path, output: Path, *, rehearsed: bool) -> dict[str, Any]:
    """Run the command line, and note what the loop did."""
    from nemo_gdpo.cli import main
    from tests.gpu_path.recorder import Recorder

    CALLS.clear()
    with Recorder(rehearsed=rehearsed) as recorder:
        own = ENGINE if rehearsed else ()
        status = main(["train", f"output_dir={output}", *overrides(case, folder), *own])
    if status:
        raise AssertionError(f"train ended with status {status}")
    return {"steps": recorder.steps, "quantized": recorder.quantized, "calls": dict(CALLS)}


def _run(case: Case, folder: Path, *, rehearsed: bool) -> dict[str, Any]:
    kind = "rehearsed" if rehearsed else "local"
    output = folder / kind / re.sub(r"\W+", "_", case.key)
    if rehearsed:
        from tests.gpu_path import gpu

        gpu.become(case.capability, apex=case.apex)
    found = _train(case, folder, output, rehearsed=rehearsed)
    if case.resumes:
        if os.environ["RANK"] == "0":
            newest = max((output / "checkpoints").glob("step_*"))
            shutil.rmtree(newest)
        found["resumed"] = _train(case, folder, output, rehearsed=rehearsed)
    return found


def main(file: Path) -> None:
    """Run the listed cases."""
    given = json.loads(file.read_text())
    rehearsed = given["tree"] is not None
    torch.set_num_threads(1)
    if rehearsed:
        from tests.gpu_path import gpu

        gpu.start(Path(given["tree"]))
    known = {case.key: case for case in (REHEARSED if rehearsed else LOCAL)}
    results: dict[str, Any] = {}
    for key, port in zip(given["keys"], given["ports"], strict=True):
        os.environ["MASTER_PORT"] = str(port)
        begun = time.perf_counter()
        print(f"== {key}", flush=True)
        try:
            results[key] = _run(known[key], Path(given["folder"]), rehearsed=rehearsed)
        except Exception:  # noqa: BLE001 - reported by the test of the case
            results[key] = {"error": traceback.format_exc()}
            break
        results[key]["seconds"] = time.perf_counter() - begun
    file.with_suffix(f".rank{os.environ['RANK']}.json").write_text(json.dumps(results))
    if any("error" in result for result in results.values()):
        # The others may wait for this rank in a collective; the launcher ends them.
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
