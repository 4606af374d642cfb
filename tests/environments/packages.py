"""Small packages: as wheels, as source, or already installed; and a clone with locks of its own."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _digest(content: bytes) -> str:
    return (
        "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    )


def contents(
    name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = ()
) -> dict[str, bytes]:
    """Every file of an installed distribution, its RECORD included; an underscore in the name."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    found = {path: text.encode() for path, text in files.items()}
    found[f"{info}/METADATA"] = metadata.encode()
    found[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{path},{_digest(data)},{len(data)}\n" for path, data in found.items())
    return {**found, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str] | None = None,
          requires: Sequence[str] = ()) -> None:  # fmt: skip
    """Write a wheel; without files it has a module of its name."""
    found = contents(name, version, files or {f"{name}.py": f"v = {version!r}\n"}, requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, data in found.items():
            archive.writestr(path, data)


def repacked(folder: Path, name: str) -> str:
    """Write the wheel of a distribution that these tests run with; returns its version."""
    found = distribution(name)
    path = folder / f"{name}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in found.files or ():
            if not str(file).startswith("..") and file.suffix != ".pyc":
                archive.write(str(file.locate()), str(file))
    return found.version


def source(folder: Path, name: str, version: str, setup: str) -> None:
    """Write a source distribution that is nothing but a setup.py."""
    info = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in (("setup.py", setup), ("PKG-INFO", info)):
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def put(site: Path, name: str, version: str, files: Mapping[str, str] | None = None,
        requires: Sequence[str] = ()) -> None:  # fmt: skip
    """Install a distribution into a folder of packages without pip."""
    found = contents(name, version, files or {f"{name}/__init__.py": ""}, requires)
    for path, data in found.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)


def site_of(python: Path) -> Path:
    """The packages of a virtual environment."""
    (found,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return found


def image(folder: Path, distributions: Sequence[tuple[str, str]]) -> Path:
    """An interpreter with pip, packaging and (name, version) distributions; returns its path."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    packaging = distribution("packaging")
    for file in packaging.files or ():
        if file.suffix != ".pyc":
            target = site_of(python) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
    for name, version in distributions:
        put(site_of(python), name, version)
    return python


class Clone:
    """A copy of the tools with locks of its own, and a folder of wheels instead of an index."""

    def __init__(self, root: Path, locks: Mapping[str, Sequence[str]]) -> None:
        self.root, self.wheels = root / "clone", root / "wheels"
        self.wheels.mkdir(parents=True)
        shutil.copytree(ROOT / "tools", self.root / "tools")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        (self.root / "requirements").mkdir()
        for name, lines in locks.items():
            (self.root / "requirements" / name).write_text("".join(f"{line}\n" for line in lines))
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "NEMO_GDPO_CACHE": str(root / "cache"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }

    def make(
        self, name: str, python: str | Path = sys.executable, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `tools/environment.py NAME` with an interpreter and further variables."""
        return subprocess.run(
            [str(python), str(self.root / "tools" / "environment.py"), name],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """What an interpreter sees of some distributions."""
    script = "import importlib.metadata as m, sys; [print(m.version(n)) for n in sys.argv[1:]]"
    done = subprocess.run(
        [str(python), "-c", script, *names], capture_output=True, text=True, check=True
    )
    return dict(zip(names, done.stdout.split(), strict=True))
