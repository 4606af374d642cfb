"""Runs several command lines in one process, to pay for importing torch and megatron once.

`python -m tests.support.run_commands CASES.json [RANK SIZE]` prints the list of exit statuses. A
case is {"argv": [...], "out": FILE, "err": FILE, "port": N}; "!" before an argv is for other
programs, and "@SIGNAL PLACE CALL" before it sends that signal, see `tests.support.signals_at`; with
"/RANK" after the signal's name to that rank alone.
With a rank it is one of SIZE processes, and every command line joins their world, as torchrun does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from nemo_gdpo.launch.ranks import rank_variables
from tests.support.ranks import WORLD
from tests.support.signals_at import signal_at


def run_one(case: dict[str, Any], rank: int | None, size: int) -> int:
    """One command line with its own output files, from a clean environment."""
    from nemo_gdpo.cli import main
    from nemo_gdpo.training.mesh import leave_world

    for name in WORLD:
        os.environ.pop(name, None)
    if rank is not None:
        os.environ.update(rank_variables(rank, size, case["port"]))
    suffix = f".rank{rank}" if rank else ""
    saved = [os.dup(1), os.dup(2)]
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            with Path(case[name] + suffix).open("w") as file:
                os.dup2(file.fileno(), descriptor)
        try:
            if case["argv"][0] == "!":  # a command between two runs
                return subprocess.run(case["argv"][1:], check=False).returncode
            if case["argv"][0].startswith("@"):
                word, *argv = case["argv"]
                name, place, call = word[1:].split()
                name, _, victim = name.partition("/")
                if victim in ("", str(rank or 0)):
                    with signal_at(name, place, int(call)):
                        return main(argv)
                return main(argv)
            return main(case["argv"])
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
    own_rank = int(sys.argv[2]) if len(sys.argv) > 2 else None
    world = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    listed = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([run_one(case, own_rank, world) for case in listed]))
