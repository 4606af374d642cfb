"""The page of a profile, from its records: where it goes, and when its protocol was committed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from examples.film_reviews.evidence.page import write_page
from examples.film_reviews.evidence.protocol import PATH, read_protocol
from examples.film_reviews.evidence.records import read_records
from examples.film_reviews.evidence.world import World
from examples.film_reviews.inputs import ROOT

UNKNOWN = "not known: this is no git clone"


def publish(world: World, *, notes: Sequence[str]) -> Path:
    """Write everything; returns the page's path. Other profiles' pages lie beside their records.

    Raises:
        UserError: records do not compare, or a file cannot be written.
    """
    results = world.records_dir.parent
    return write_page(
        read_records(world.records_dir),
        read_protocol(),
        docs_dir=ROOT / "docs" if world.profile == "cpu" else results,
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
