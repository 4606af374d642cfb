"""Stands for both environments' Python in jobs of `slurm/*.sub`: what they do is seconds away then.

A job calls it as it calls Python (`-m nemo_gdpo train`, `slurm/stages.py plan`, `-m ray...`).
NEMO_GDPO_STAND_IN names a directory: each call leaves a line there; `act` says what ranks do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from nemo_gdpo.launch.slurm import step_status

PLACE = Path(os.environ.get("NEMO_GDPO_STAND_IN", "."))
START = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
RANK = int(os.environ.get("SLURM_PROCID", "0"))
SECRET = "WANDB_API_KEY"
NOTED = (
    "CUDA_VISIBLE_DEVICES",
    "SLURM_LOCALID",
    "SLURMD_NODENAME",
    "SLURM_JOB_NAME",
    "MASTER_ADDR",
    "NEMO_GDPO_END_TIME",
)


def _note(arguments: list[str]) -> None:
    entry = {name: os.environ.get(name) for name in NOTED}
    entry |= {"arguments": arguments, "rank": RANK, "start": START}
    entry |= {"has_key": SECRET in os.environ, "gpus": os.environ.get("SLURM_GPUS_ON_NODE")}
    with (PLACE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _checked() -> int:
    if (PLACE / "act").read_text() == "check slowly" and START == 0:
        time.sleep(100)
    return 0


def _stages(output: Path) -> int:
    checkpoint = max((output / "checkpoints").glob("step_*"), default=None)
    done = checkpoint if (output / "done").exists() else None
    lines = {
        "output": output,
        "references": output / "reference",
        "base": PLACE / "base",
        "checkpoint": done or "",
        "exported": "",
        "prompts": PLACE / "prompts.jsonl",
    }
    for name, value in lines.items():
        print(f"{name} {value}")
    return 0


def _save(output: Path, step: int) -> None:
    checkpoint = output / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")


def _train(act: str, output: Path) -> int:
    """What a rank does; returns its status."""
    if act == "mistake" and RANK == 1:
        return 2
    if act == "stop" and START == 0:
        time.sleep(RANK)  # the others are slower at the end
        return 75
    if act == "crash" or (act == "crash thrice" and START < 3):
        if RANK == 1:
            if act != "crash":
                _save(output, 8 + START)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)
    if act == "mistake":
        time.sleep(100)
    if RANK == 0:
        _save(output, 40)
        (output / "done").touch()
    return 0


def main(arguments: list[str]) -> int:
    """Do what the job asks for; returns the exit status."""
    _note(arguments)
    output, command = PLACE / "out", " ".join(arguments[:3])
    if "stages.py" in command:
        return _stages(output)
    if command.startswith("-m nemo_gdpo doctor"):
        return _checked()
    if command.startswith("-m nemo_gdpo train"):
        return step_status(_train((PLACE / "act").read_text(), output), os.environ)
    if "ray.scripts" in command:
        time.sleep(100)
    if command.startswith("-m nemo_gdpo convert") and (PLACE / "act").read_text() == "no export":
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
