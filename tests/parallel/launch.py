"""Start the ranks of one world, and read what they found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.ranks import run_ranks


def launch(folder: Path, size: int, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the cases of a world of `size` ranks; key of the case -> what rank 0 found.

    Raises:
        AssertionError: a rank failed outside of any case, or the launch hangs.
    """
    logs = [folder / f"world{size}.rank{rank}.log" for rank in range(size)]
    codes = run_ranks("tests.parallel.rank_main", [str(folder), *keys], logs)
    found = [folder / f"world{size}.rank{rank}.json" for rank in range(size)]
    results = [json.loads(path.read_text()) if path.is_file() else {} for path in found]
    for rank, result in enumerate(results):
        for key, value in result.items():
            if "error" in value:
                raise AssertionError(f"{key} failed on rank {rank} of {size}:\n{value['error']}")
    if any(codes):
        last = "\n".join(log.read_text()[-2000:] for log in logs)
        raise AssertionError(f"{size} ranks ended with {codes}:\n{last}")
    return dict(results[0])
