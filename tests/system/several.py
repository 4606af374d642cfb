"""Runs several command lines in one process, to pay for importing torch and megatron once.

`python -m tests.system.several CASES.json`: a list of {"argv": [...], "out": FILE, "err": FILE}. Prints the
list of exit statuses.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def run_one(case: dict[str, list[str] | str]) -> int:
    """One command line with its own output files, from a clean environment."""
    from nemo_gdpo.cli import main
    from nemo_gdpo.training.mesh import leave_world

    for name in WORLD:
        os.environ.pop(name, None)
    saved = [os.dup(1), os.dup(2)]
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            with Path(str(case[name])).open("w") as file:
                os.dup2(file.fileno(), descriptor)
        try:
            return main(list(case["argv"]))
        except Exception:  # noqa: BLE001 - what the interpreter does with it
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            if "torch" in sys.modules:
                leave_world()
    finally:
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


if __name__ == "__main__":
    print(json.dumps([run_one(case) for case in json.loads(Path(sys.argv[1]).read_text())]))
