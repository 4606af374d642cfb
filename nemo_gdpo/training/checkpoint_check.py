"""Whether a checkpoint is whole, found out by all ranks together.

Names, sizes and the manifest are looked at by rank 0, in a moment. Reading all of it takes an hour
a terabyte for one process: each rank hashes its share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemo_gdpo.control import gathered, on_every_rank
from nemo_gdpo.control.world import rank_and_size
from nemo_gdpo.io.late import wait_for_files
from nemo_gdpo.io.manifest import Listed, why_damaged

CHECKING = "checking the hashes"
"""Stage, as errors name it."""
SHARE = "set output_dir to a directory that all nodes share"


def share_of(files: Mapping[str, Listed], rank: int, size: int) -> dict[str, Listed]:
    """A rank's part of the files: about as many bytes as every other's."""
    loads = [(0, other) for other in range(size)]
    mine: dict[str, Listed] = {}
    for name in sorted(files, key=lambda name: (-files[name].bytes, name)):
        load, owner = min(loads)
        loads[owner] = (load + files[name].bytes, owner)
        if owner == rank:
            mine[name] = files[name]
    return mine


def why_damaged_together(directory: Path, files: Mapping[str, Listed]) -> str | None:
    """`why_damaged`, shared out over the ranks. Collective.

    Args:
        directory: that rank 0 sees.
        files: of its manifest; the same on all ranks.

    Raises:
        UserError: on every rank, when one does not see the files.
        RunError: on every rank, when one cannot read them.
    """
    mine = share_of(files, *rank_and_size())

    def look() -> str | None:
        wait_for_files(directory, {name: file.bytes for name, file in mine.items()}, SHARE)
        return why_damaged(directory, mine)

    reasons = gathered(on_every_rank(CHECKING, look))
    return next((reason for reason in reasons if reason is not None), None)
