"""One rank of a rehearsal: its cases, one after the other.

`python -m tests.gpu_path.rank_main CASES.json` under RANK and WORLD_SIZE. The file names the folder
of the inputs, Transformer Engine's Python tree (null for the local layers), and the keys of the
cases and probes. The rank writes beside it what it found, by key. What fails is written down with
its traceback, and ends the launch.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.gpu_path.cases import BY_KEY


def _find(key: str, folder: Path) -> dict[str, Any]:
    from tests.gpu_path.probes import PROBES
    from tests.gpu_path.runs import run

    if key in BY_KEY:
        return run(BY_KEY[key], folder)
    return PROBES[key]()


def main(file: Path) -> None:
    """Run what is listed."""
    given = json.loads(file.read_text())
    torch.set_num_threads(1)
    if given["tree"] is not None:
        # Before any other import of the project: the platform is chosen once.
        from tests.gpu_path import gpu

        gpu.start(Path(given["tree"]))
    from tests.gpu_path import worlds

    store = worlds.meet()
    results: dict[str, Any] = {}
    for key in given["keys"]:
        print(f"== {key}", flush=True)
        begun = time.perf_counter(), time.process_time()
        try:
            results[key] = _find(key, Path(given["folder"]))
        except Exception:  # noqa: BLE001 - reported by every test of the launch
            results[key] = {"error": traceback.format_exc()}
            break
        results[key]["seconds"] = time.perf_counter() - begun[0]
        results[key]["processor_seconds"] = time.process_time() - begun[1]
    file.with_suffix(f".rank{os.environ['RANK']}.json").write_text(json.dumps(results))
    if any("error" in result for result in results.values()):
        # The others may wait for this rank in a collective; the launcher ends them.
        os._exit(1)
    del store


if __name__ == "__main__":
    main(Path(sys.argv[1]))
