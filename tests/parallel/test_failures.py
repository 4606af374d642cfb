"""A stage that fails on one of two ranks fails on both, at once, and is told once.

One launch runs all of `tests.parallel.failures`, one after the other: a rank that hung, or went on
by itself, would end it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.parallel.failures import ELSEWHERE, FAILURES, Failing
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.ranks import run_ranks

SECONDS = 30.0
"""In which every rank has to end; a run takes one or two on a machine that is not busy."""
Ranks = tuple[Mapping[str, Any], Mapping[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What became of every run on either rank."""
    folder = tmp_path_factory.mktemp("failures")
    save_model(folder / "model")
    write_jsonl(folder / "train.jsonl", pairs(8))
    logs = [folder / f"log{rank}" for rank in range(2)]
    codes = run_ranks("tests.parallel.failing_main", [str(folder)], logs)
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    one, two = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    return one, two


def _of(ranks: Ranks, case: Failing, victim: int) -> list[Mapping[str, Any]]:
    return [rank["fails"][f"{case.key} on {victim}"] for rank in ranks]


CASES = [(case, victim) for case in FAILURES for victim in case.victims]


@pytest.mark.parametrize(
    ("case", "victim"), CASES, ids=[f"{case.key} on {victim}" for case, victim in CASES]
)
def test_both_ranks_end_and_one_says_why(ranks: Ranks, case: Failing, victim: int) -> None:
    found = _of(ranks, case, victim)
    assert [rank["status"] for rank in found] == [case.status] * 2, found
    assert max(rank["seconds"] for rank in found) < SECONDS
    told = [line for line in found[0]["err"].splitlines() if line.startswith("nemo-gdpo: ")]
    (line,) = told
    assert line.startswith("nemo-gdpo: error: ")
    assert "injected" in line
    assert f"rank {victim}" in line
    assert (case.said or case.stage) in line
    assert "nemo-gdpo" not in found[1]["err"]  # rank 0 speaks for all
    # A fault's traceback comes from where it is; what somebody can mend has none.
    for rank in range(2):
        is_fault = case.kind == "bug" and rank == victim
        assert ("Traceback" in found[rank]["err"]) == is_fault


def test_every_stage_is_in_the_table(ranks: Ranks) -> None:
    for rank in ranks:
        assert [run["status"] for run in rank["succeeds"].values()] == [0] * 5
        assert set(rank["stages"]) == {case.stage for case in FAILURES} | ELSEWHERE
