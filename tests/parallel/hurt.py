"""A run in which one rank is hurt: `python -m tests.parallel.MODULE CASE VICTIM CONFIG`."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nemo_gdpo.config.composition import compose, config_yaml
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.verbs.start import FAILURE
from tests.support.commands import DEADLINE, common, steps
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.ranks import ROOT, clean_environment


@dataclass(frozen=True)
class Ended:
    """How it ended."""

    status: int
    lines: list[str]
    """Of this program itself, on stderr."""
    err: str
    seconds: float
    """From the last step that was made to the end; 0 where none was."""
    reason: str | None
    """Left for a caller in Python."""


def save_inputs(folder: Path, number: int) -> Path:
    """A tiny model and so many pairs; returns the folder."""
    save_model(folder / "model")
    write_jsonl(folder / "train.jsonl", pairs(number))
    return folder


def run_hurt(module: str, folder: Path, case: str, victim: int, *overrides: str) -> Ended:
    """Two steps of DPO, unless the case keeps them from it."""
    own = folder / f"{case}-{victim}"
    own.mkdir()
    given = common(folder / "model", folder / "train.jsonl", own / "out", *steps(2))
    config = TRAIN.parse(compose([*given, "objective=dpo", *overrides], TRAIN).plain)
    (own / "config.yaml").write_text(config_yaml(config))
    command = ["-m", f"tests.parallel.{module}", case, str(victim), str(own / "config.yaml")]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=clean_environment(), capture_output=True,
        text=True, timeout=2 * DEADLINE, check=False,
    )  # fmt: skip
    now, metrics, reason = time.time(), own / "out" / "metrics.jsonl", own / FAILURE
    return Ended(
        done.returncode,
        [line for line in done.stderr.splitlines() if line.startswith("nemo-gdpo: ")],
        done.stderr,
        now - metrics.stat().st_mtime if metrics.is_file() else 0.0,
        reason.read_text() if reason.is_file() else None,
    )
