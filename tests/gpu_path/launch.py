"""Start a rehearsal's ranks, and read what they found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ranks import free_port, run_ranks

MODULE = "tests.gpu_path.rank_main"


def launch(
    folder: Path, keys: Sequence[str], *, ranks: int, tree: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """Train the cases; key -> what each rank found.

    Args:
        folder: with the inputs.
        keys: of the cases.
        ranks: how many.
        tree: Transformer Engine's Python layer; None for the local layers.

    Raises:
        AssertionError: a case failed, or the launch hangs; with what the ranks said last.
    """
    file = folder / f"{'local' if tree is None else 'rehearsed'}.json"
    given = {
        "folder": str(folder),
        "tree": None if tree is None else str(tree),
        "keys": list(keys),
        "ports": [free_port() for _ in keys],
    }
    file.write_text(json.dumps(given))
    logs = [file.with_suffix(f".rank{rank}.log") for rank in range(ranks)]
    codes = run_ranks(MODULE, [str(file)], logs)
    if any(codes):
        said = "\n".join(log.read_text()[-4000:] for log in logs)
        raise AssertionError(f"{ranks} ranks ended with {codes}:\n{said}")
    found = [json.loads(file.with_suffix(f".rank{rank}.json").read_text()) for rank in range(ranks)]
    return {key: [of_rank[key] for of_rank in found] for key in keys}
