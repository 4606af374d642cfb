"""Lists of the files that each distribution of a lock owns, for locks that CI does not install.

`requirements/files/NAME.json` is written from an installed environment and checked without one: it
has to be of exactly the versions in the environment's last lock, and no file may have two owners,
as in `ownership.conflicts`. A folder that one distribution has to itself stands as one entry,
`torch/`. A lock that adds to another is compared with what is installed of that one, so that a
change there asks for no new list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from .cache import cached_environment
from .install import site_packages
from .ownership import Owners, conflicts, normalised, owners, shared
from .recipes import ENVIRONMENTS, LOCKS, read_lock

LISTS = LOCKS / "files"
# What `pip` writes from site-packages into bin/ and share/.
_UP, _PREFIX = "../../../", "PREFIX/"


def listed() -> list[str]:
    """The environments with a list: those with CUDA, which CI does not make."""
    return [name for name, recipe in ENVIRONMENTS.items() if recipe.cuda]


def locked(name: str) -> set[str]:
    """The `name==version` lines of an environment's last lock, names as PEP 503 compares them."""
    lines = (line.split("==") for line in read_lock(ENVIRONMENTS[name].locks[-1]))
    return {f"{normalised(package)}=={version}" for package, version in lines}


def installed(site: Path) -> Owners:
    """The owners of what is installed; scripts and the like as `PREFIX/bin/NAME`."""
    return {path.replace(_UP, _PREFIX): who for path, who in owners(site).items()}


def _folders(path: str) -> Iterator[str]:
    """The folders that a file is in, the outermost first, each with a slash at its end."""
    for place, letter in enumerate(path):
        if letter == "/":
            yield path[: place + 1]


def entries(found: Owners) -> dict[str, list[str]]:
    """Distribution -> the files and folders that are its own; a folder stands for what is below."""
    below: dict[str, set[str]] = {}
    for path, who in found.items():
        for folder in _folders(path):
            below.setdefault(folder, set()).update(who)
    own: dict[str, set[str]] = {}
    for path, who in found.items():
        if len(who) == 1:
            (distribution,) = who
            alone = (folder for folder in _folders(path) if len(below[folder]) == 1)
            own.setdefault(distribution, set()).add(next(alone, path))
    return {
        distribution: sorted(path for path in paths if not path.endswith(".dist-info/"))
        for distribution, paths in sorted(own.items())
    }


def write(name: str) -> Path:
    """Make or find an environment and write its list; conflicts are written, not hidden."""
    found = installed(site_packages(cached_environment(name)))
    wanted = locked(name)
    content = {
        "distributions": {who: own for who, own in entries(found).items() if who in wanted},
        "shared": {
            path: who for path, who in sorted(shared(found).items()) if not wanted.isdisjoint(who)
        },
    }
    LISTS.mkdir(exist_ok=True)
    path = LISTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _overlaps(distributions: Mapping[str, list[str]]) -> Iterator[str]:
    """Entries of two distributions of which one is, or is below, the other."""
    last, owner = "", ""
    for entry, distribution in sorted((e, d) for d, found in distributions.items() for e in found):
        if distribution != owner and (
            entry == last or (last[-1:] == "/" and entry.startswith(last))
        ):
            yield f"{owner} owns {last}, and {distribution} owns {entry}"
        elif not (last[-1:] == "/" and entry.startswith(last)):
            last, owner = entry, distribution


def _met(distributions: Mapping[str, list[str]], below: Owners) -> Iterator[str]:
    """Installed files that are, or are below, an entry of the list; a line for each pair."""
    owner = {entry: who for who, found in distributions.items() for entry in found}
    names = {distribution.split("==")[0] for distribution in distributions}
    pairs: dict[tuple[str, str], str] = {}
    for path, who in below.items():
        others = [distribution for distribution in who if distribution.split("==")[0] not in names]
        for entry in (path, *_folders(path)) if others else ():
            if entry in owner:
                pairs.setdefault((owner[entry], others[0]), f"{entry}, and {others[0]} owns {path}")
    for (first, _), rest in sorted(pairs.items()):
        yield f"{first} owns {rest}"


def problems(name: str, path: Path, below: Owners) -> Iterator[str]:
    """What is wrong with the list of an environment.

    Args:
        name: of the environment.
        path: its list.
        below: what is installed of the locks that its last lock adds to, as `installed` gives it.
    """
    renew = f"run `make python-{name}` and `tools/check_locks.py {name}`"
    if not path.is_file():
        yield f"is missing; {renew}"
        return
    content = json.loads(path.read_text())
    have, wanted = set(content["distributions"]), locked(name)
    if have != wanted:
        odd = sorted(have ^ wanted)
        yield f"is not of the locked versions ({', '.join(odd[:4])}); {renew}"
    yield from _overlaps(content["distributions"])
    yield from conflicts(content["shared"])
    if len(ENVIRONMENTS[name].locks) > 1:
        yield from _met(content["distributions"], below)
