"""Make (or find) a locked Python environment and print the path of its interpreter.

    python3 tools/environment.py training
    python3 tools/environment.py training-gpu      # the same with CUDA and Transformer Engine
    python3 tools/environment.py training-ngc      # inside NVIDIA's PyTorch image
    python3 tools/environment.py generation        # vLLM and Ray on a machine without a GPU
    python3 tools/environment.py generation-gpu    # the same on NVIDIA GPUs
    python3 tools/environment.py bench             # training's packages and TRL, for `make bench`
    python3 tools/environment.py label             # training's packages and Label Studio's SDK
    python3 tools/environment.py docs              # what builds the documentation
    python3 tools/environment.py hadolint          # what checks the Dockerfile
    python3 tools/environment.py label-studio      # Label Studio, for `make label-test`

The packages live in a cache outside the clone, named after a hash of the lock, so that a second
clone is quick. The clone itself gets a small `.venv` that adds this checkout and the `nemo-gdpo`
command on top of them. A cached environment is used only after every locked version has been seen
in it.

Standard library only: this runs before anything is installed. (Inside an image, its `packaging`.)
"""

from __future__ import annotations

import sys
from pathlib import Path

from environments.cache import cached_environment, overlay
from environments.recipes import ENVIRONMENTS, fail

NGC = "training-ngc"


def _in_image() -> Path:
    """The environment inside NVIDIA's image; only there is its module imported."""
    try:
        from environments.ngc import image_environment
    except ModuleNotFoundError as error:
        fail(f"{NGC} needs {error.name}, which NVIDIA's image has; run it there with its python3")
    python: Path = image_environment()
    return python


def main() -> None:
    """Entry point; see the module's docstring."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        fail(
            f"Python {sys.version.split()[0]} is not supported; use 3.11 or 3.12: "
            "make PYTHON=python3.12 ..."
        )
    if len(sys.argv) != 2 or sys.argv[1] not in (*ENVIRONMENTS, NGC):
        fail(f"usage: environment.py {'|'.join((*ENVIRONMENTS, NGC))}")
    name = sys.argv[1]
    print(overlay(name, _in_image() if name == NGC else cached_environment(name)))


if __name__ == "__main__":
    main()
