"""The project inside NVIDIA's PyTorch image, whose torch, Transformer Engine and Apex are kept.

The image's builds fit its CUDA, its cuBLAS and one another; nothing from an index replaces them. A
virtual environment on top sees the image's packages and gets from `training.lock` what the image
lacks, and what it has in a version that the project or a locked package cannot work with.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import site
import sys
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from .cache import held
from .install import (
    CONSTRAINTS,
    pip,
    pip_check,
    refuse_shared_files,
    site_packages,
    wrong_packages,
)
from .ownership import normalised
from .recipes import RECIPE_VERSION, ROOT, fail, read_lock, say

NAME = "training-ngc"
LOCK = "training.lock"
DATA = "assets.lock"
EXTRAS = ("train", "data", "evaluate", "dev")
"""The extras of pyproject.toml that training.lock was made from."""
USED = r"torch|(pytorch-)?triton|transformer-engine(-.+)?|apex|flash-attn(-.+)?"
"""Normalised names of the image's that training runs on."""
KEPT = re.compile(rf"{USED}|torchvision|torchaudio|torchao|nvidia-.+|cuda-.+|nccl.*|cupy.*")
"""And what else stays the image's: all that is compiled against its torch, and CUDA's libraries."""
MADE = "made.json"
_LACKS = re.compile(r"(?P<who>\S+) \S+ requires (?P<what>[^\s,]+), which is not installed\.")
_DIFFERS = re.compile(
    r"(?P<who>\S+) \S+ has requirement .+, but you have (?P<what>\S+) (?P<version>\S+)\."
)


@dataclass
class Plan:
    """What goes on top of an image: filled while it is found out."""

    image: dict[str, str]
    """Normalised name -> version of everything in the image."""
    locked: dict[str, str]
    """Normalised name -> line of training.lock, without what is the image's."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Normalised name -> why the locked version is installed."""

    @property
    def kept(self) -> dict[str, str]:
        """What of the image may not be replaced."""
        return {name: version for name, version in self.image.items() if KEPT.fullmatch(name)}

    @property
    def lines(self) -> list[str]:
        """What is installed."""
        return [self.locked[name] for name in sorted(self.reasons)]


def _image_packages() -> dict[str, str]:
    """What this interpreter sees; the first of two with one name counts, as on import."""
    found: dict[str, str] = {}
    for distribution in distributions():
        found.setdefault(normalised(distribution.metadata["Name"]), distribution.version)
    return found


def _direct_requirements() -> Iterator[Requirement]:
    """What pyproject.toml asks for where training runs, on this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def _refuse_other_machines(image: dict[str, str]) -> None:
    for name, module in (("torch", "torch"), ("transformer-engine", "transformer_engine")):
        if name not in image or importlib.util.find_spec(module) is None:
            fail(
                f"{NAME} is for NVIDIA's PyTorch image, and this Python ({sys.executable}) has no "
                f"{module}; run it with the image's own python3, or take `make python-training-gpu`"
            )
    for module, use in (("triton", "megatron-core imports"), ("pip", "installs the rest")):
        if importlib.util.find_spec(module) is None:
            fail(f"{NAME}: this image has no {module}, which {use} ({sys.executable})")


def plan() -> Plan:
    """What to install, from the names and versions alone.

    Raises:
        SystemExit: this is no such image, or its torch is not one that the project runs on.
    """
    image = _image_packages()
    _refuse_other_machines(image)
    locked = {normalised(line.split("==")[0]): line for line in read_lock(LOCK)}
    found = Plan(image, {name: line for name, line in locked.items() if not KEPT.fullmatch(name)})
    for name in found.locked:
        if name not in image:
            found.reasons[name] = "the image has none"
    for requirement in _direct_requirements():
        name = normalised(requirement.name)
        if name not in image or requirement.specifier.contains(image[name], prereleases=True):
            continue
        if name in found.kept:
            fail(
                f"the image's {name} {image[name]} is not what pyproject.toml asks for "
                f"({requirement}); take another image, or `make python-training-gpu`"
            )
        found.reasons[name] = f"pyproject.toml asks for {requirement}"
    return found


def _constraint_lines() -> Iterator[tuple[str, Requirement]]:
    """The requirements in the files that PIP_CONSTRAINT names, each with its file."""
    for name in (part for variable in CONSTRAINTS for part in os.environ.get(variable, "").split()):
        path = Path(name)
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                yield name, Requirement(line.split("#")[0].split(";")[0].strip())
            except InvalidRequirement:
                continue  # an option or a link: nothing about a version


def _say_constraints(found: Plan) -> None:
    """What an exported constraints file means here: it is not applied, and where that matters."""
    names = [name for variable in CONSTRAINTS for name in os.environ.get(variable, "").split()]
    if names:
        say(
            f"environment: PIP_CONSTRAINT ({', '.join(names)}) is left out: the image's packages "
            f"are kept anyway, and {LOCK} says the rest"
        )
    for file, requirement in _constraint_lines():
        name = normalised(requirement.name)
        version = found.locked.get(name, "==").split("==")[1]
        if name in found.reasons and not requirement.specifier.contains(version, prereleases=True):
            say(
                f"environment: {file} has {requirement}; {found.locked[name]} is installed on top "
                f"all the same, because {found.reasons[name]}"
            )


def _add_needed(found: Plan, complaints: list[str]) -> list[str]:
    """Mark the locked packages that complaints of `pip check` ask for; returns their lines."""
    added = []
    for complaint in complaints:
        match = _LACKS.fullmatch(complaint) or _DIFFERS.fullmatch(complaint)
        name = normalised(match["what"]) if match else ""
        if name in found.locked and name not in found.reasons:
            found.reasons[name] = complaint.rstrip(".")
            added.append(found.locked[name])
    return added


def _judge(found: Plan, complaints: list[str]) -> None:
    """Fail where something that was installed cannot work here; name what else no longer fits."""
    for complaint in complaints:
        match = _LACKS.fullmatch(complaint) or _DIFFERS.fullmatch(complaint)
        who = normalised(match["who"]) if match else ""
        if match is None or who in found.reasons or re.fullmatch(USED, who):
            fail(f"the image and {LOCK} do not fit together: {complaint} Take another image")
        say(f"environment: in the image, of no use to this project: {complaint}")


def _see_image(python: Path) -> None:
    """Let an environment see the packages of the interpreter that runs this, after its own."""
    folders = [
        *site.getsitepackages(),
        *([site.getusersitepackages()] if site.ENABLE_USER_SITE else []),
    ]
    (site_packages(python) / "image.pth").write_text(
        "".join(f"import site; site.addsitedir({folder!r})\n" for folder in folders)
    )


def _install(environment: Path, found: Plan) -> None:
    """Fill an empty environment; its record is written last."""
    shutil.rmtree(environment, ignore_errors=True)
    # Without pip of its own: Debian splits ensurepip off, and the image's pip is seen.
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    _see_image(python)
    constraints = environment / "image.txt"
    constraints.write_text("".join(f"{name}=={v}\n" for name, v in sorted(found.kept.items())))
    options = ("install", "--no-deps", "--ignore-requires-python", "-c", str(constraints))
    before = set(pip_check(python))
    complaints: list[str] = []
    wanted = found.lines
    while wanted:
        say(f"environment: installing {len(wanted)} packages of {LOCK} into {environment}")
        pip(python, *options, *wanted)
        complaints = [line for line in pip_check(python) if line not in before]
        wanted = _add_needed(found, complaints)
    _say_constraints(found)
    _judge(found, complaints)
    pip(python, *options, *read_lock(DATA))
    refuse_shared_files(python, (LOCK, DATA))
    made = {"installed": [*found.lines, *read_lock(DATA)], "kept": found.kept}
    (environment / MADE).write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")


def _wrong(environment: Path, image: dict[str, str]) -> list[str]:
    """What is not as the record says: a package, or one of the image's that was replaced."""
    record, python = environment / MADE, environment / "bin" / "python"
    if not record.is_file():
        return ["the record of what was installed"]
    own = (path.name.split("-")[0] for path in site_packages(python).glob("*.dist-info"))
    replaced = [name for name in own if KEPT.fullmatch(normalised(name))]
    if replaced:
        return [f"{replaced[0]}, which lies over the image's"]
    made = json.loads(record.read_text())
    kept = [f"{name}=={image.get(name)}" for name in made["kept"]]
    return wrong_packages(python, [*made["installed"], *kept])


def _cache_name(image: dict[str, str]) -> str:
    """A hash of the lock, what pyproject.toml asks for, and everything that the image has."""
    parts = [RECIPE_VERSION, sys.version, sys.prefix, *read_lock(LOCK), *read_lock(DATA)]
    parts += sorted(str(requirement) for requirement in _direct_requirements())
    parts += [f"{name}=={version}" for name, version in sorted(image.items())]
    return f"{NAME}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"


def image_environment() -> Path:
    """The interpreter of the environment on top of this image, made or repaired where needed."""
    found = plan()
    with held(_cache_name(found.image)) as environment:
        wrong = _wrong(environment, found.image)
        if wrong:
            if environment.exists():
                say(f"environment: {environment} is incomplete ({wrong[0]}); installing it again")
            _install(environment, found)
            wrong = _wrong(environment, found.image)
            if wrong:
                fail(f"{environment} is still incomplete after installing: {'; '.join(wrong[:3])}")
    for name in ("torch", "transformer-engine", "apex"):
        say(f"environment: the image's {name} is {found.image.get(name, 'missing')}")
    return environment / "bin" / "python"
