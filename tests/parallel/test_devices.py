"""A rank without a device of its own ends all ranks, each of them with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ranks import run_ranks


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("one", "ranks 0 and 1 have one GPU between them (gpu 0)"),
        ("too few", "rank 1: LOCAL_RANK=1: this process can see 0 GPUs"),
    ],
)
def test_all_ranks_are_told(case: str, told: str, tmp_path: Path) -> None:
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    codes = run_ranks("tests.parallel.device_ranks", [case], logs)
    said = [log.read_text() for log in logs]
    assert not any(codes), said
    for rank, text in enumerate(said):
        assert f"rank {rank} told: {told}" in text
