"""What libraries say while they are imported stays out of a run's output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules",
    [
        "nemo_gdpo.nemo.classes, nemo_gdpo.training.run",
        "nemo_gdpo.training.run, nemo_gdpo.nemo.classes",
        "nemo_gdpo.training.run",
    ],
)
def test_a_rank_starts_without_chatter(modules: str) -> None:
    hidden = ("NEMO_GDPO_VERBOSE", "PYTHONWARNINGS")
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in hidden},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == ""
