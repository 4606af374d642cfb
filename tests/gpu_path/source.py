"""Transformer Engine's Python layer: downloaded once, checked by its hash, unpacked for a session.

The wheel `transformer_engine` of PyPI (0.7 MB) is the Python layer alone. It is not installed: an
environment in which `transformer_engine` can be imported makes megatron-core believe in it.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements" / "transformer-engine-source.lock"


def pinned() -> tuple[str, str]:
    """(version, SHA-256 of the wheel)."""
    found = re.search(r"^transformer-engine==(\S+) --hash=sha256:(\w+)$", LOCK.read_text(), re.M)
    assert found is not None, f"{LOCK} pins no wheel"
    return found[1], found[2]


def _is_whole(wheel: Path) -> bool:
    return wheel.is_file() and hashlib.sha256(wheel.read_bytes()).hexdigest() == pinned()[1]


def fetch(downloads: Path) -> Path:
    """The wheel in a folder of downloads, got first where it is missing or damaged.

    Raises:
        RuntimeError: no package index is reachable, or what it gave is another file.
    """
    wheel = downloads / f"transformer_engine-{pinned()[0]}-py3-none-any.whl"
    if _is_whole(wheel):
        return wheel
    downloads.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-qqq", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "-r", str(LOCK), "-d", str(downloads)]
    wheel.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not _is_whole(wheel):
        raise RuntimeError(
            f"could not download {wheel.name}; check that pip reaches a package index\n"
            f"{done.stderr}"
        )
    return wheel


def unpack(wheel: Path, directory: Path) -> Path:
    """The folder that holds `transformer_engine` and what pip would know of it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory
