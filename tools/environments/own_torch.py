"""Start Python again without the libraries of another torch, where LD_LIBRARY_PATH names them.

NVIDIA's PyTorch image has the folder of its own torch there. The loader looks there first, before
the folder in which an environment's own torch says that its libraries lie (RUNPATH): vLLM's torch
would run on half of another build. `cache.overlay` copies this file into every environment with a
torch of its own and calls it from a .pth file, before anything is imported.

Standard library only.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "LD_LIBRARY_PATH"
LIBRARY = "libtorch.so"


def without_torch(folders: str) -> str:
    """A search path without the folders that hold a torch."""
    kept = (f for f in folders.split(":") if not os.path.exists(os.path.join(f, LIBRARY)))  # noqa: PTH110, PTH118
    return ":".join(kept)


def start_again() -> None:
    """Replace this process by the same command with the shorter path; return where it is right."""
    folders = os.environ.get(VARIABLE, "")
    kept = without_torch(folders)
    # The loader read the path when the process began: to change it now is for the next one only.
    if kept != folders and sys.executable:
        os.environ[VARIABLE] = kept
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
