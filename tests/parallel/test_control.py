"""The control group: its own, patient, and there as long as the world is."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.ranks import run_ranks


def test_control_group(tmp_path: Path) -> None:
    """Rank 0 alone takes twice as long as a collective of the computation may take."""
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    codes = run_ranks("tests.parallel.control_main", [str(tmp_path)], logs)
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    for rank in range(2):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == {
            "is its own": True,
            "limits": [True, True],
            "outlives meshes": True,
            "gathered": [{"rank": 0}, {"rank": 1}],
            "from the main rank": [7],
            "out of step": "RuntimeError: the ranks are out of step (rank 0: one thing; rank 1: "
            "another)",
            "none": None,
        }
