"""Start a rehearsal's ranks, and read what they found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ranks import run_ranks

MODULE = "tests.gpu_path.rank_main"
DEADLINE = 1200.0
"""Seconds; on two idle cores a launch takes two to three minutes."""
Found = dict[str, list[dict[str, Any]]]
"""Key of a case or probe -> what each rank found."""


def launch(folder: Path, keys: Sequence[str], *, ranks: int, tree: Path | None) -> Found:
    """Run cases and probes in one process for each rank.

    Args:
        folder: with the inputs.
        keys: of the cases and probes.
        ranks: how many.
        tree: Transformer Engine's Python layer; None for the local layers.

    Raises:
        AssertionError: something failed, or the launch hangs; with what the ranks said last.
    """
    file = folder / f"{'local' if tree is None else 'rehearsed'}.json"
    given = {
        "folder": str(folder),
        "tree": None if tree is None else str(tree),
        "keys": list(keys),
    }
    file.write_text(json.dumps(given))
    logs = [file.with_suffix(f".rank{rank}.log") for rank in range(ranks)]
    codes = run_ranks(MODULE, [str(file)], logs, deadline=DEADLINE)
    found = [_read(file.with_suffix(f".rank{rank}.json")) for rank in range(ranks)]
    for rank, of_rank in enumerate(found):
        for key, result in of_rank.items():
            assert "error" not in result, f"{key} failed on rank {rank}:\n{result['error']}"
    if any(codes):
        said = "\n".join(log.read_text()[-4000:] for log in logs)
        raise AssertionError(f"{ranks} ranks ended with {codes}:\n{said}")
    return {key: [of_rank[key] for of_rank in found] for key in keys}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
