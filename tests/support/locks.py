"""An output_dir that another process holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.ranks import ROOT


def holding(directory: Path, **variables: str) -> subprocess.Popen[str]:
    """Another process that holds it until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from nemo_gdpo.io.output_lock import hold\n"
        "hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process
