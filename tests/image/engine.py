"""Build and run images with Podman and runc, which need no daemon; nothing of it stays behind."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("podman", "runc", "debootstrap")
SUITE = "bookworm"
ARCHIVE = "http://deb.debian.org/debian"
BASE = f"localhost/debian:{SUITE}"
PIP_KEYS = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert")
BUILD_SECONDS = 3600.0
RUN_SECONDS = 600.0
Done = subprocess.CompletedProcess[str]


def _limits() -> list[str]:
    """Limits that a process without CAP_SYS_RESOURCE may set; Podman would raise its own."""
    wanted = {"nofile": (resource.RLIMIT_NOFILE, 8192), "nproc": (resource.RLIMIT_NPROC, 4096)}
    flags = []
    for name, (which, most) in wanted.items():
        hard = resource.getrlimit(which)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(hard, most)
        flags += ["--ulimit", f"{name}={limit}:{limit}"]
    return flags


@dataclass
class Engine:
    """Podman with a storage of its own."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """What took how long."""

    def command(self, *arguments: str) -> list[str]:
        own = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        own += ["--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=file"]
        return ["podman", *own, *arguments]

    def call(self, *arguments: str, check: bool = True, timeout: float = RUN_SECONDS) -> Done:
        """Run one command of Podman; what it said is part of the failure."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check:
            assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
        return done

    def json(self, *arguments: str) -> Any:
        """The first of what a command prints as JSON."""
        return json.loads(self.call(*arguments).stdout)[0]

    def has(self, image: str) -> bool:
        return self.call("image", "exists", image, check=False).returncode == 0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - begun

    def debian(self) -> None:
        """A base image that is nothing but a minimal Debian: no Python, no compiler."""
        if self.has(BASE):
            return
        tree, archive = self.folder / "debian", self.folder / "debian.tar"
        with self.timed("debootstrap"):
            _quiet("debootstrap", "--variant=minbase", SUITE, str(tree), ARCHIVE)
            _quiet("tar", "-C", str(tree), "-cf", str(archive), ".")
            self.call("import", "--quiet", str(archive), BASE)
        shutil.rmtree(tree)
        archive.unlink()

    def build(self, context: Path, image: str, *flags: str, **arguments: str) -> None:
        """Build the Dockerfile of a folder, in a chroot and with this machine's package index.

        Args:
            context: the folder.
            image: name of the result.
            flags: more of `podman build`.
            arguments: its --build-arg values.
        """
        given = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
        with self.timed(f"build of {image}"):
            self.call(
                "build", "--isolation=chroot", "--network=host", "--pull=never", "--format=docker",
                *_limits(), *given, *flags, "--tag", image, str(context),
                timeout=BUILD_SECONDS,
            )  # fmt: skip

    def layers(self, image: str) -> list[Path]:
        """The folders with the files of each layer, the topmost first."""
        data = self.json("image", "inspect", image)["GraphDriver"]["Data"]
        return [Path(p) for p in f"{data['UpperDir']}:{data.get('LowerDir', '')}".split(":") if p]

    def history(self, image: str) -> list[tuple[int, str]]:
        """(bytes, what made it) of every layer that has files, the topmost first."""
        rows = json.loads(self.call("history", "--format=json", "--no-trunc", image).stdout)
        return [(row["size"], row["CreatedBy"]) for row in rows if row["size"] > 10_000]

    def run(self, image: str, *command: str, flags: Sequence[str] = (), check: bool = True) -> Done:
        """Run a command in a container that is gone afterwards; there is no network."""
        # Without systemd there is nothing that would run it from time to time, and Podman says so.
        own = ["--rm", "--network=none", "--no-healthcheck", *_limits()]
        return self.call("run", *own, *flags, image, *command, check=check)

    def start(self, image: str, *command: str, flags: Sequence[str] = ()) -> str:
        """Start a container in the background; returns its id."""
        done = self.call("run", "--detach", "--network=none", *_limits(), *flags, image, *command)
        return done.stdout.strip()

    def end(self, container: str, *, timeout: float = RUN_SECONDS) -> tuple[int, str]:
        """Wait for a container; its status and what it said. It is removed."""
        status = int(self.call("wait", container, timeout=timeout).stdout)
        logs = self.call("logs", container)
        self.call("rm", "--force", container)
        return status, logs.stdout + logs.stderr

    def remove(self) -> None:
        """Take everything away."""
        self.call("rm", "--all", "--force", check=False)
        # Podman keeps its layers below a mount of their folder on itself.
        _umount = ["umount", "--recursive", "--quiet", str(self.folder / "storage" / "overlay")]
        subprocess.run(_umount, capture_output=True, check=False)
        shutil.rmtree(self.folder)


def _quiet(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def why_not() -> str | None:
    """Why no image can be built here; None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs {' '.join(missing)}: apt-get install --no-install-recommends {missing[0]}"
    return "needs root" if os.geteuid() else None


@dataclass(frozen=True)
class PackageIndex:
    """How pip of this machine finds packages, in the form that a build takes."""

    settings: dict[str, str]
    """Key of pip.conf -> value."""

    @property
    def folders(self) -> list[str]:
        """Local folders among the indexes."""
        words = f"{self.settings.get('find-links', '')} {self.settings.get('extra-index-url', '')}"
        paths = [word.removeprefix("file://") for word in words.split()]
        roots = {re.sub(r"/simple/?$", "", path) for path in paths if path.startswith("/")}
        return sorted(path for path in roots if Path(path).is_dir())

    def flags(self, folder: Path) -> list[str]:
        """Flags of `podman build`; the secrets lie in a folder that the caller removes."""
        settings = dict(self.settings)
        certificates = settings.get("cert")
        if certificates:
            settings["cert"] = "/run/secrets/ca"
        config = folder / "pip.conf"
        config.touch(mode=0o600)
        lines = [f"{key} = {value}" for key, value in settings.items()]
        config.write_text("\n".join(["[global]", *lines, ""]))
        found = ["--secret", f"id=pip,src={config}"]
        found += ["--secret", f"id=ca,src={certificates}"] if certificates else []
        return found + [f"--volume={path}:{path}:ro" for path in self.folders]


def package_index() -> PackageIndex:
    """What `pip config list` says; variables come after files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.partition("=") for line in listed.splitlines())
    pairs = [(key.rpartition(".")[2], ast.literal_eval(value)) for key, _, value in rows]
    return PackageIndex({key: value for key, value in pairs if key in PIP_KEYS})
