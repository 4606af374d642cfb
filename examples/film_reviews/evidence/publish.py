"""The page of a profile, from its records: where it goes, and when its protocol was committed.

Records are of one model, which another processor trains to other bits. So a run keeps its own, and
those that the documentation stands on are copied beside the code on request.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from examples.film_reviews.evidence.page import write_page
from examples.film_reviews.evidence.protocol import PATH, read_protocol
from examples.film_reviews.evidence.records import read_records
from examples.film_reviews.evidence.world import World
from examples.film_reviews.inputs import ROOT
from nemo_gdpo.errors import UserError

UNKNOWN = "not known: this is no git clone"


def write(world: World, *, notes: Sequence[str]) -> Path:
    """Write the page beside the records; returns its path.

    Raises:
        UserError: records do not compare, or a file cannot be written.
    """
    results = world.records_dir.parent
    return _write(world, results, results, notes)


def publish(world: World, *, notes: Sequence[str]) -> Path:
    """Write docs/evidence.md, and benchmarks/evidence with a copy of the records.

    Raises:
        UserError: see `write`; or the profile is not the one that the documentation stands on.
    """
    if world.profile != "cpu":
        raise UserError(f"--publish: docs/evidence.md is of the profile cpu, not {world.profile}")
    kept = ROOT / "benchmarks" / "evidence"
    shutil.rmtree(kept / "records", ignore_errors=True)
    shutil.copytree(world.records_dir, kept / "records")
    return _write(world, ROOT / "docs", kept, notes)


def _write(world: World, docs: Path, results: Path, notes: Sequence[str]) -> Path:
    return write_page(
        read_records(world.records_dir),
        read_protocol(),
        docs_dir=docs,
        results_dir=results,
        notes=notes,
        settings=world.settings.plain(),
        protocol_stamp=protocol_stamp(),
    )


def protocol_stamp() -> str:
    """When the protocol was last changed, as git tells it."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=commit %h of %ad"]
    command += ["--date=iso-strict", "--", str(PATH)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN
