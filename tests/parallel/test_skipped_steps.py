"""Updates in which something is not finite are left out on all ranks, noted, and limited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import stored
from tests.support.commands import metrics, without_timing
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.ranks import run_ranks


@dataclass(frozen=True)
class Runs:
    folder: Path
    ranks: tuple[Mapping[str, Any], Mapping[str, Any]]

    def statuses(self, name: str) -> list[int]:
        return [rank[name]["status"] for rank in self.ranks]

    def told(self, name: str) -> list[str]:
        lines = [line for rank in self.ranks for line in rank[name]["err"].splitlines()]
        assert "Traceback" not in "".join(lines)
        return [line for line in lines if line.startswith("nemo-gdpo: ")]

    def noted(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / name / "skipped_steps.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def rows(self, name: str) -> list[dict[str, Any]]:
        return without_timing(metrics(self.folder / name))

    def checkpoint(self, name: str, step: int) -> Path:
        return self.folder / name / "checkpoints" / f"step_{step:08d}"

    def state(self, name: str, step: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.checkpoint(name, step) / "trainer_state.json").read_text()
        )
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("skipped")
    save_model(folder / "model")
    write_jsonl(folder / "train.jsonl", pairs(16))
    logs = [folder / f"log{rank}" for rank in range(2)]
    codes = run_ranks("tests.parallel.skip_main", [str(folder)], logs)
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    one, two = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    return Runs(folder, (one, two))


def same_tensors(left: Path, right: Path) -> bool:
    one, two = stored(left), stored(right)
    assert one.keys() == two.keys()
    assert any("exp_avg" in name for name in one)
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", ["pairs", "pairs bf16", "pairs distributed"])
def test_an_update_is_left_out_and_training_goes_on(runs: Runs, name: str) -> None:
    assert runs.statuses(name) == [0, 0], runs.told(name)
    # Nothing of the model or the optimizer moved in it, and both moved before and after.
    assert same_tensors(runs.checkpoint(name, 1), runs.checkpoint(name, 2))
    assert not same_tensors(runs.checkpoint(name, 2), runs.checkpoint(name, 3))
    rows = runs.rows(name)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["train/skipped_steps"] for row in rows] == [0, 1, 1, 1]
    assert ["loss" in row for row in rows] == [True, False, True, True]
    # Data and schedule go on as if it had been made.
    assert [row["consumed_pairs"] for row in rows] == [4, 8, 12, 16]
    assert rows[2]["learning_rate"] == pytest.approx(1e-3 * 0.25)  # a third before the end


def test_the_pairs_are_written_down(runs: Runs) -> None:
    (row,) = runs.noted("pairs")
    assert row["step"] == 1
    assert row["pairs_are"] == "not finite"
    assert len(row["pairs"]) == 1
    assert row["pairs"][0].startswith("pair-")
    assert row["pairs"][0] in row["reason"]
    assert "loss or log-probs are not finite" in row["reason"]


def test_of_a_gradient_the_whole_batch_is_written_down(runs: Runs) -> None:
    """It is not finite on one rank alone, and both leave the update out."""
    assert runs.statuses("gradient") == [0, 0]
    rows = runs.noted("gradient")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["pairs_are"] == "the batch"
        assert len(row["pairs"]) == 4
        assert "gradient norm" in row["reason"]
    assert same_tensors(runs.checkpoint("gradient", 1), runs.checkpoint("gradient", 3))


def test_a_resumed_run_leaves_out_the_same_to_the_bit(runs: Runs) -> None:
    assert runs.statuses("pairs again") == [0, 0]
    assert same_tensors(runs.checkpoint("pairs", 4), runs.checkpoint("pairs again", 4))
    assert runs.state("pairs", 4) == runs.state("pairs again", 4)
    assert runs.state("pairs", 4)["skipped_steps"] == 1
    assert runs.state("pairs", 1)["skipped_steps"] == 0
    assert runs.rows("pairs") == runs.rows("pairs again")
    assert runs.noted("pairs") == runs.noted("pairs again")  # once, not twice


def test_the_check_of_the_start_waits_for_the_first_update(runs: Runs) -> None:
    assert runs.statuses("first") == [0, 0]
    assert [row["step"] for row in runs.noted("first")] == [0]
    assert runs.rows("first")[1]["rewards/margins"] == pytest.approx(0.0, abs=1e-6)


def test_one_too_many_ends_the_run_and_is_written_down_first(runs: Runs) -> None:
    assert runs.statuses("too many") == [1, 1]
    (line,) = runs.told("too many")
    assert line.startswith("nemo-gdpo: error: step 3: loss or log-probs are not finite for pairs ")
    assert "the weights were not changed" in line
    assert "2 updates were left out before (trainer.max_skipped_steps=2" in line
    assert [row["step"] for row in runs.noted("too many")] == [1, 2, 3]
    assert not runs.checkpoint("too many", 4).exists()


def test_none_may_be_allowed(runs: Runs) -> None:
    assert runs.statuses("none allowed") == [1, 1]
    (line,) = runs.told("none allowed")
    assert "step 1: the gradient norm is " in line
    assert [row["step"] for row in runs.noted("none allowed")] == [1]


def test_a_reference_that_is_not_finite_is_never_left_out(runs: Runs) -> None:
    assert runs.statuses("reference") == [1, 1]
    (line,) = runs.told("reference")
    assert "not finite for pairs" in line
    assert "max_skipped_steps" not in line
