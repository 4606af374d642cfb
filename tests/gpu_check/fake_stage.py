"""Stands for `nemo_gdpo.gpu_check.stage`: stages that pass, fail, hang, crash or do not apply."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nemo_gdpo.gpu_check.findings import Measurement, NotHereError, at_most
from nemo_gdpo.gpu_check.stage import RESULT, carry_out
from nemo_gdpo.gpu_check.stages import Stage


def passes(folder: Path) -> Iterator[Measurement]:
    del folder
    yield at_most("gap", 1e-6, 1e-4, "nats")


def misses(folder: Path) -> Iterator[Measurement]:
    del folder
    yield at_most("gap", 0.5, 0.1, "nats")
    yield at_most("other gap", float("nan"), 0.1)


def breaks(folder: Path) -> Iterator[Measurement]:
    del folder
    yield at_most("gap", 0.0, 0.1)
    raise RuntimeError("CUDA error: an illegal memory access\nand more lines")


def lacks(folder: Path) -> Iterator[Measurement]:
    del folder
    raise NotHereError("this machine has no GPU")
    yield


def hangs(folder: Path) -> Iterator[Measurement]:
    del folder
    print("waiting for rank 1", flush=True)
    time.sleep(600)
    yield Measurement("never", 0.0)


def dies(folder: Path) -> Iterator[Measurement]:
    del folder
    print("Segmentation fault", flush=True)
    os._exit(139)
    yield


def counts(folder: Path) -> Iterator[Measurement]:
    (folder / f"rank{os.environ.get('RANK', 'none')}").touch()
    yield Measurement("ranks", int(os.environ.get("WORLD_SIZE", "1")))


if __name__ == "__main__":
    name, place = sys.argv[1], Path(sys.argv[2])
    with (place.parent / "begun.txt").open("a") as log:
        log.write(f"{name}\n")
    result = carry_out(Stage(name, "", 1.0, f"tests.gpu_check.fake_stage:{name}"), place)
    if os.environ.get("RANK", "0") == "0":
        (place / RESULT).write_text(json.dumps(result.to_dict()))
