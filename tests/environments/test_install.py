"""An environment is made from its locks, offline, and a cached one is looked at before it is used.

Torch, CUDA's headers and Transformer Engine are small stand-ins; pip and the compile step are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.environments.packages import Clone, put, repacked, site_of, source, wheel
from tools.environments.install import wrong_packages
from tools.environments.recipes import cache_name

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

# Notes under which circumstances it is built, and is built only where torch can be imported.
SETUP = """
import json, os, torch
from setuptools import setup
names = ("CUDA_HOME", "CPATH", "NVTE_PYTORCH_FORCE_BUILD", "NVTE_UB_WITH_MPI", "PIP_CONSTRAINT")
seen = {name: os.environ.get(name) for name in names}
seen["torch"], seen["first"] = torch.version.cuda, os.environ["PATH"].split(":")[0]
open("transformer_engine_torch.py", "w").write(f"built = {seen!r}\\n")
setup(name="transformer_engine_torch", version="2.12.0", py_modules=["transformer_engine_torch"])
"""


def torch_files(cuda: str | None) -> dict[str, str]:
    return {
        "torch/__init__.py": "from torch import version\n",
        "torch/version.py": f"from typing import Optional\ncuda: Optional[str] = {cuda!r}\n",
    }


def gpu_clone(tmp_path: Path, engine: str = "import transformer_engine_torch\n") -> Clone:
    """A clone whose training-gpu is of stand-ins; an index that offers a CPU torch as well."""
    locks = {
        "training.lock": ["torch==2.13.0", "megatron-core==0.19.2"],
        "training-gpu.lock": [
            "nvidia-cuda-nvcc==13.0.88", "transformer_engine==2.12.0",
            "transformer_engine_torch==2.12.0",
        ],
        "assets.lock": ["texts==1.0"],
    }  # fmt: skip
    made = Clone(tmp_path, locks)
    locks["training-gpu.lock"].append(f"setuptools=={repacked(made.wheels, 'setuptools')}")
    (made.root / "requirements" / "training-gpu.lock").write_text(
        "".join(f"{line}\n" for line in locks["training-gpu.lock"])
    )
    wheel(made.wheels, "torch", "2.13.0", torch_files("13.0"))
    wheel(made.wheels, "torch", "2.13.0+cpu", torch_files(None))
    wheel(
        made.wheels,
        "megatron_core",
        "0.19.2",
        {"megatron/core/extensions/transformer_engine.py": "import transformer_engine.pytorch\n"},
    )
    wheel(made.wheels, "nvidia_cuda_nvcc", "13.0.88", {"nvidia/cu13/include/cuda.h": ""})
    wheel(
        made.wheels,
        "transformer_engine",
        "2.12.0",
        {"transformer_engine/__init__.py": "", "transformer_engine/pytorch/__init__.py": engine},
    )
    source(made.wheels, "transformer_engine_torch", "2.12.0", SETUP)
    wheel(made.wheels, "texts", "1.0")
    return made


def test_training_on_a_gpu_is_compiled_against_its_own_torch_and_headers(tmp_path: Path) -> None:
    made = gpu_clone(tmp_path)
    (tmp_path / "constraint.txt").write_text("torch<2.13\n")
    outside = {
        "PIP_CONSTRAINT": str(tmp_path / "constraint.txt"),
        "CUDA_HOME": "/opt/cuda-12",
        "CPATH": "/opt/cuda-12/include",
        "NVTE_UB_WITH_MPI": "1",
    }
    done = made.make("training-gpu", **outside)
    assert done.returncode == 0, done.stderr
    assert f"PIP_CONSTRAINT={outside['PIP_CONSTRAINT']} is left out" in done.stderr
    (cached,) = (tmp_path / "cache" / "environments").glob("training-gpu-cu130-*/bin/python")
    nvidia = site_of(cached) / "nvidia"
    script = "import json, transformer_engine_torch as t; print(json.dumps(t.built))"
    seen = subprocess.run(
        [done.stdout.strip(), "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(seen.stdout) == {
        "torch": "13.0",  # not 2.13.0+cpu, which pip prefers to 2.13.0
        "CUDA_HOME": str(nvidia / "cu13"),
        "CPATH": f"{nvidia / 'cudnn' / 'include'}:{nvidia / 'nccl' / 'include'}",
        "NVTE_PYTORCH_FORCE_BUILD": "TRUE",
        "NVTE_UB_WITH_MPI": None,
        "PIP_CONSTRAINT": None,
        "first": str(cached.parent),
    }
    again = made.make("training-gpu")
    assert again.stdout == done.stdout
    assert again.stderr == ""

    # Transformer Engine looks for CUDA's libraries beside the interpreter's own packages, and for
    # headers in a toolkit, which a machine may not have, or have of another version.
    script = (
        "import os, sysconfig; "
        "print(os.path.realpath(sysconfig.get_path('purelib') + '/nvidia/cu13/include/cuda.h'), "
        "os.environ['NVTE_CUDA_INCLUDE_DIR'])"
    )
    seen = subprocess.run(
        [done.stdout.strip(), "-c", script],
        env={"CUDA_HOME": "/opt/cuda-12"},
        capture_output=True,
        text=True,
        check=True,
    )
    headers = nvidia / "cu13" / "include"
    assert seen.stdout.split() == [str(headers / "cuda.h"), str(headers)]

    # A cache is not believed: what was compiled is compared with what lies there.
    (site_of(cached) / "transformer_engine_torch.py").write_text("built = {}\n")
    repaired = made.make("training-gpu")
    assert (
        "transformer_engine_torch.py of transformer_engine_torch is not the file" in repaired.stderr
    )
    assert "installing it again" in repaired.stderr


def test_a_torch_for_another_cuda_is_not_the_one_that_was_asked_for(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    put(site_of(python), "torch", "2.13.0", torch_files("12.8"))
    assert wrong_packages(python, ["torch==2.13.0"]) == []
    assert wrong_packages(python, ["torch==2.13.0"], cuda="12.8") == []
    for cuda, found in (("12.8", "12.8"), (None, "None")):
        put(site_of(python), "torch", "2.13.0", torch_files(cuda))
        assert wrong_packages(python, ["torch==2.13.0"], cuda="13.0") == [
            f"torch for CUDA {found} instead of CUDA 13.0"
        ]


def test_a_cache_is_named_after_what_it_was_built_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers = tmp_path / "c++"
    compilers.write_text("#!/bin/sh\necho other 1.0\n")
    compilers.chmod(0o755)
    before = {name: cache_name(name) for name in ("training", "training-gpu", "generation-gpu")}
    assert before["training-gpu"].startswith("training-gpu-cu130-")
    monkeypatch.setenv("CXX", str(compilers))
    after = {name: cache_name(name) for name in before}
    assert after["training-gpu"] != before["training-gpu"]
    # What compiles nothing is the same environment under any compiler.
    del before["training-gpu"], after["training-gpu"]
    assert after == before


def test_an_engine_that_does_not_load_is_refused_when_it_is_installed(tmp_path: Path) -> None:
    made = gpu_clone(tmp_path, engine="raise ImportError('undefined symbol: cublasLtX')\n")
    done = made.make("training-gpu")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "environment: error: `import transformer_engine.pytorch` fails in the new environment: "
        "ImportError: undefined symbol: cublasLtX"
    )


def test_no_compiler_is_one_line_before_anything_is_installed(tmp_path: Path) -> None:
    done = gpu_clone(tmp_path).make("training-gpu", CXX="no-such-compiler")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("environment: error: no C++ compiler (no-such-compiler)")
    assert not list((tmp_path / "cache").rglob("site-packages"))


@pytest.mark.parametrize("second", ["a", "b"], ids=["same content", "different content"])
def test_two_owners_of_a_file_are_refused_when_they_are_installed(
    second: str, tmp_path: Path
) -> None:
    made = Clone(tmp_path, {"docs.lock": ["one==1.0", "two==1.0"]})
    wheel(made.wheels, "one", "1.0", {"shared/__init__.py": "a"})
    wheel(made.wheels, "two", "1.0", {"shared/__init__.py": second})
    done = made.make("docs")
    assert done.returncode == 2
    content = "the same" if second == "a" else "different"
    assert done.stderr.splitlines()[-1] == (
        "environment: error: docs.lock: one==1.0 and two==1.0 both own shared/__init__.py "
        f"({content} content); constrain one of them and resolve the lock again"
    )


def test_the_images_environment_elsewhere_is_one_line(tmp_path: Path) -> None:
    # Whatever this interpreter has, it is not NVIDIA's image.
    done = Clone(tmp_path, {"training.lock": [], "assets.lock": []}).make("training-ngc")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "transformer_engine" in line and "`make python-training-gpu`" in line


def test_an_unknown_environment_is_told_which_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "tools/environment.py", "gpu"],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "environment: error: usage: environment.py "
        "training|training-gpu|generation|generation-gpu|bench|label|docs|hadolint|training-ngc\n"
    )
