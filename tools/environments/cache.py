"""Environments in the cache, made or repaired on demand, and the clone's own `.venv` on top."""

from __future__ import annotations

import fcntl
import shutil
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .install import install, site_packages, wrong_packages
from .recipes import (
    ENVIRONMENTS,
    RECIPE_VERSION,
    ROOT,
    Recipe,
    cache_name,
    cache_root,
    fail,
    read_lock,
    say,
)

OVERLAY_VERSION = "2"
"""Rises when what `overlay` writes changes."""


@contextmanager
def held(name: str) -> Iterator[Path]:
    """The directory of a cached environment, held by this process while it looks and works.

    Two makes at once: the second waits and then finds the work done.
    """
    directory = cache_root() / "environments"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield directory / name


def _wrong(python: Path, recipe: Recipe) -> list[str]:
    packages = [line for name in recipe.files for line in read_lock(name)]
    return wrong_packages(python, packages, recipe.cuda, recipe.compiled)


def cached_environment(name: str) -> Path:
    """The interpreter of the cached environment, made or repaired first where that is needed."""
    recipe = ENVIRONMENTS[name]
    with held(cache_name(name)) as environment:
        python = environment / "bin" / "python"
        wrong = _wrong(python, recipe)
        if wrong:
            if environment.exists():
                say(f"environment: {environment} is incomplete ({wrong[0]}); installing it again")
            install(environment, recipe)
            wrong = _wrong(python, recipe)
            if wrong:
                fail(f"{environment} is still incomplete after installing: {'; '.join(wrong[:3])}")
    return python


def _own_cuda(site: Path, base: Path) -> Iterator[str]:
    """Let Transformer Engine find the environment's CUDA, not whatever the machine has or lacks.

    It looks for libraries in the interpreter's own site-packages, here the clone's, and for the
    headers of the kernels that it compiles at run time in a toolkit's folder, never in packages.

    Yields:
        Lines for a .pth file.
    """
    if not (base / "transformer_engine").is_dir() or not (base / "nvidia").is_dir():
        return
    (site / "nvidia").symlink_to(base / "nvidia")
    headers = str(base / "nvidia" / "cu13" / "include")
    yield f"import os; os.environ.setdefault('NVTE_CUDA_INCLUDE_DIR', {headers!r})\n"


def _own_torch(site: Path, base: Path) -> Iterator[str]:
    """Keep the environment's torch from loading the libraries of another one; see `own_torch.py`.

    Yields:
        Lines for a .pth file.
    """
    if (base / "torch").is_dir():
        shutil.copy(Path(__file__).with_name("own_torch.py"), site / "nemo_gdpo_own_torch.py")
        yield "import nemo_gdpo_own_torch; nemo_gdpo_own_torch.start_again()\n"


def overlay(name: str, cached: Path) -> Path:
    """The clone's own `.venv`: the cached packages, this checkout, and the `nemo-gdpo` command."""
    directory = ROOT / ".venv" / name
    python = directory / "bin" / "python"
    marker = directory / "made-for"
    identity = f"{RECIPE_VERSION}.{OVERLAY_VERSION} {cached} {ROOT}"
    if marker.is_file() and marker.read_text() == identity and python.exists():
        return python
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, with_pip=False, symlinks=True)
    site, base = site_packages(python), site_packages(cached)
    lines = [
        *_own_torch(site, base),
        f"import site; site.addsitedir({str(base)!r})\n{ROOT}\n",
        *_own_cuda(site, base),
    ]
    (site / "nemo_gdpo_environment.pth").write_text("".join(lines))
    command = directory / "bin" / "nemo-gdpo"
    command.write_text(
        # Guarded, because checkpoint writers are spawned and import the main module again.
        f"#!{python}\nimport sys\n\nfrom nemo_gdpo.cli import main\n\n"
        'if __name__ == "__main__":\n    sys.exit(main())\n'
    )
    command.chmod(0o755)
    marker.write_text(identity)
    return python
