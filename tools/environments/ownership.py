"""Which distribution owns which installed file.

Two distributions that write one file leave the one that was unpacked last, whatever `pip check`
says: half of one version beside half of another. Each distribution's RECORD (PEP 376) says what it
wrote, with the hash of its own content.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Owners = dict[str, dict[str, str]]
"""Path relative to site-packages -> distribution as `name==version` -> hash of what it wrote."""


@dataclass(frozen=True)
class Judged:
    """Files that several distributions are known to write, and that do no harm; why at each."""

    distributions: frozenset[str]
    """Normalised names."""
    files: str
    """Pattern of full paths."""
    may_differ: bool = False
    """Whether the contents may differ, because nothing reads the file once it is installed."""


JUDGED = (
    # The three parts of one logger, each with the note that this folder has no __init__.py.
    Judged(
        frozenset(
            {
                "nv-one-logger-core",
                "nv-one-logger-pytorch-lightning-integration",
                "nv-one-logger-training-telemetry",
            }
        ),
        r"nv_one_logger/no_init\.md",
    ),
    # The core package of Transformer Engine brings the Python tree of the package above it.
    Judged(
        frozenset({"transformer-engine", "transformer-engine-cu13"}), r"transformer_engine/.+\.py"
    ),
    # What each was built with, packed by mistake; no module of theirs imports it.
    Judged(
        frozenset({"flashinfer-python", "torch-c-dlpack-ext"}),
        r"build_backend\.py",
        may_differ=True,
    ),
)


def normalised(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _identity(dist_info: Path) -> str:
    """`name==version` from the folder's name, without a local version such as +cpu."""
    name, version = dist_info.name.removesuffix(".dist-info").split("-", 1)
    return f"{normalised(name)}=={version.split('+')[0]}"


def _recorded(dist_info: Path) -> dict[str, str]:
    """The files of a distribution; what Python compiled when it was installed is left out."""
    record = dist_info / "RECORD"
    if not record.is_file():
        return {}
    with record.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.reader(handle) if row]
    return {row[0]: row[1] for row in rows if not row[0].endswith(".pyc")}


def owners(site_packages: Path) -> Owners:
    """The owners of every file below a folder of packages, and of the scripts beside it."""
    found: Owners = {}
    for dist_info in sorted(site_packages.glob("*.dist-info")):
        for path, digest in _recorded(dist_info).items():
            found.setdefault(path, {})[_identity(dist_info)] = digest
    return found


def shared(found: Owners) -> Owners:
    """The files with more than one owner."""
    return {path: who for path, who in found.items() if len(who) > 1}


def _is_judged(path: str, who: Mapping[str, str]) -> bool:
    names = {distribution.split("==")[0] for distribution in who}
    differ = len(set(who.values())) > 1
    return any(
        names <= row.distributions and re.fullmatch(row.files, path) and row.may_differ >= differ
        for row in JUDGED
    )


def conflicts(found: Owners) -> Iterator[str]:
    """A line for each group of distributions that own a file together, unless that is judged.

    A row of `JUDGED` holds only while the contents are the same, unless it says otherwise.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    differing: set[tuple[str, ...]] = set()
    for path, who in shared(found).items():
        if not _is_judged(path, who):
            group = tuple(sorted(who))
            groups.setdefault(group, []).append(path)
            if len(set(who.values())) > 1:
                differing.add(group)
    for group, paths in sorted(groups.items()):
        content = "different" if group in differing else "the same"
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"{' and '.join(group)} both own {paths[0]}{more} ({content} content)"
