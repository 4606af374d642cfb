"""Fill an empty environment from its locks, and see that a cached one is whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from .ownership import conflicts, owners
from .recipes import LOCKS, TORCH, Recipe, compiler, fail, read_lock, say

CONSTRAINTS = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
"""Variables by which an image or a site narrows what pip may install."""
NO_INDEX = "is a package index reachable?"
# At most so many compilers at once, at 2 to 3 GB each.
MOST_JOBS = 16

# Runs inside the cached environment: prints what is missing, differs, or is not what was compiled.
_CHECK = """
import base64, hashlib, json, re, sys
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
asked = json.load(sys.stdin)
wrong = []
for line in asked["packages"]:
    name, wanted = line.split("==")
    try:
        found = version(name).split("+")[0]
    except PackageNotFoundError:
        found = None
    if found != wanted.split("+")[0]:
        wrong.append(f"{name} {found} instead of {wanted}")
if asked["cuda"] and not wrong:
    text = Path(find_spec("torch").origin).with_name("version.py").read_text()
    found = re.search(r"^cuda[^=]*= *'([^']*)'", text, re.MULTILINE)
    if found is None or found[1] != asked["cuda"]:
        wrong.append(f"torch for CUDA {found and found[1]} instead of CUDA {asked['cuda']}")
for name in () if wrong else asked["compiled"]:
    for file in distribution(name).files or ():
        path = Path(file.locate())
        digest = hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b""
        if file.hash and base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            wrong.append(f"{file} of {name} is not the file that was compiled")
print(json.dumps(wrong))
"""


def pip_environment() -> dict[str, str]:
    """This process's environment without constraints from outside: locks have every version."""
    return {name: value for name, value in os.environ.items() if name not in CONSTRAINTS}


def pip(
    python: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    hint: str = NO_INDEX,
) -> None:
    """Run pip in an environment; its output is shown only when it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        command,
        env=pip_environment() if environment is None else dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        say(done.stdout[-4000:] + done.stderr[-4000:])
        fail(f"`pip {' '.join(arguments[:3])} ...` failed; {hint}")


def pip_check(python: Path) -> list[str]:
    """The lines in which `pip check` complains."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(
        command, env=pip_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return []
    return [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def unexpected_complaints(python: Path, accepted: tuple[str, ...]) -> list[str]:
    """What `pip check` says beside the lines that a recipe accepts."""
    lines = pip_check(python)
    return [line for line in lines if not any(re.fullmatch(known, line) for known in accepted)]


def wrong_packages(
    python: Path, packages: Sequence[str], cuda: str | None = None, compiled: Sequence[str] = ()
) -> list[str]:
    """What the environment lacks of `name==version` lines; empty when it is whole.

    Args:
        python: its interpreter.
        packages: the locked lines.
        cuda: CUDA version that its torch has to be built for.
        compiled: packages whose files have to be those that were compiled, by their hashes.
    """
    if not python.exists():
        return ["the interpreter"]
    asked = json.dumps({"packages": list(packages), "cuda": cuda, "compiled": list(compiled)})
    done = subprocess.run(
        [str(python), "-c", _CHECK], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1]]
    found: list[str] = json.loads(done.stdout)
    return found


def site_packages(python: Path) -> Path:
    """Where the packages of a virtual environment are."""
    (found,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return found


def refuse_shared_files(python: Path, names: Sequence[str]) -> None:
    """Fail where two distributions wrote the same file; `pip check` does not look at files."""
    found = list(conflicts(owners(site_packages(python))))
    if found:
        fail(f"{', '.join(names)}: {found[0]}; constrain one of them and resolve the lock again")


def say_constraints() -> None:
    """One line for each variable of pip that is left out."""
    for name in CONSTRAINTS:
        if os.environ.get(name):
            say(f"environment: {name}={os.environ[name]} is left out: the locks have every version")


def _build_environment(python: Path) -> dict[str, str]:
    """Variables under which Transformer Engine's torch part is compiled.

    CUDA's headers are those of the locked packages, never those of a toolkit that happens to be
    loaded; and it is compiled here, not fetched ready-made from a release page.
    """
    nvidia = site_packages(python) / "nvidia"
    jobs = str(min(len(os.sched_getaffinity(0)), MOST_JOBS))
    kept = {name: v for name, v in pip_environment().items() if not name.startswith("NVTE_")}
    return {
        "MAX_JOBS": jobs,
        **kept,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "CUDA_HOME": str(nvidia / "cu13"),
        "CPATH": os.pathsep.join(str(nvidia / name / "include") for name in ("cudnn", "nccl")),
        "NVTE_PYTORCH_FORCE_BUILD": "TRUE",
    }


def _refuse_without_headers() -> None:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        fail(
            f"no {header}, which compiling against torch needs; install python3-dev for this Python"
        )


def _compile(python: Path, packages: Sequence[str]) -> None:
    """Build source packages against what is installed; never from pip's cache of earlier builds."""
    for line in packages:
        name = line.split("==")[0]
        say(f"environment: compiling {line} (28 files, 13 minutes of one core)")
        pip(
            python,
            *("install", "--no-deps", "--no-build-isolation", "--no-cache-dir"),
            *("--no-binary", name, line),
            environment=_build_environment(python),
            hint=f"is the package index reachable, and does {compiler()} know C++17?",
        )


def _refuse_unless_it_imports(python: Path, modules: Sequence[str]) -> None:
    """Import modules with every symbol bound at once, as a kernel's first call would need it."""
    for module in modules:
        done = subprocess.run(
            [str(python), "-c", f"import {module}"],
            env={**os.environ, "LD_BIND_NOW": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            fail(f"`import {module}` fails in the new environment: {lines[-1]}")


def _torch_requirement(line: str, recipe: Recipe) -> str:
    """The requirement for torch; `===` keeps pip from preferring a build such as 2.13.0+cpu."""
    return line.replace("==", "===") if recipe.cuda else line


def install(environment: Path, recipe: Recipe) -> None:
    """Fill an empty environment from the locks."""
    if recipe.compiled:
        _refuse_without_headers()
    shutil.rmtree(environment, ignore_errors=True)
    say(f"environment: installing {', '.join(recipe.files)} into {environment} (a few minutes)")
    say_constraints()
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    locked = [line for name in recipe.locks for line in read_lock(name)]
    names = {line: line.split("==")[0] for line in locked}
    torch = [line for line in locked if names[line] == TORCH]
    compiled = [line for line in locked if names[line] in recipe.compiled]
    # torch first, with its own dependencies: a machine that offers a CPU wheel takes that one, any
    # other takes the normal one with the CUDA libraries it names. With a CUDA version in the recipe
    # the normal one is taken everywhere.
    if torch:
        constraints = [part for name in recipe.locks for part in ("-c", str(LOCKS / name))]
        pip(python, "install", *(_torch_requirement(line, recipe) for line in torch), *constraints)
    rest = [line for line in locked if line not in (*torch, *compiled)]
    pip(python, "install", "--no-deps", "--ignore-requires-python", *rest)
    _compile(python, compiled)
    complaints = unexpected_complaints(python, recipe.accepted)
    if complaints:
        fail(f"{recipe.locks[-1]} does not fit together: {'; '.join(complaints[:5])}")
    for name in recipe.data:
        pip(python, "install", "--no-deps", *read_lock(name))
    refuse_shared_files(python, recipe.files)
    _refuse_unless_it_imports(python, recipe.imports)
