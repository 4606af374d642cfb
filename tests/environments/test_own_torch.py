"""An environment with a torch of its own loads that one, whatever LD_LIBRARY_PATH names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.environments.packages import Clone, wheel
from tools.environments.own_torch import without_torch

pytestmark = pytest.mark.slow

SHOW = "import os, sys; print(os.environ['LD_LIBRARY_PATH'], sys.argv[1:], os.getpid())"


def torch_folder(tmp_path: Path) -> Path:
    """A folder as that of another torch."""
    folder = tmp_path / "other" / "torch" / "lib"
    folder.mkdir(parents=True)
    (folder / "libtorch.so").write_bytes(b"")
    return folder


def test_folders_with_a_torch_are_left_out(tmp_path: Path) -> None:
    torch = torch_folder(tmp_path)
    assert without_torch(f"{torch}:/usr/lib:{torch}") == "/usr/lib"
    assert without_torch("/a::/b") == "/a::/b"
    assert without_torch("") == ""


def test_an_environment_starts_without_the_libraries_of_another_torch(tmp_path: Path) -> None:
    made = Clone(tmp_path, {"docs.lock": ["torch==1.0", "words==1.0"]})
    wheel(made.wheels, "torch", "1.0", {"torch/__init__.py": ""})
    wheel(made.wheels, "words", "1.0")
    done = made.make("docs")
    assert done.returncode == 0, done.stderr
    python = done.stdout.strip()
    path = f"{torch_folder(tmp_path)}:/elsewhere"
    process = subprocess.Popen(
        [python, "-c", SHOW, "a", "b c"],
        env=os.environ | {"LD_LIBRARY_PATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    # The same process: who started it sends its signals to the right one.
    assert out == f"/elsewhere ['a', 'b c'] {process.pid}\n"


def test_an_environment_without_torch_is_left_alone(tmp_path: Path) -> None:
    made = Clone(tmp_path, {"docs.lock": ["words==1.0"]})
    wheel(made.wheels, "words", "1.0")
    python = made.make("docs").stdout.strip()
    path = f"{torch_folder(tmp_path)}:/elsewhere"
    seen = subprocess.run(
        [python, "-c", SHOW],
        env=os.environ | {"LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.startswith(f"{path} ")
