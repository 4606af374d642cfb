"""Cells of other mixes and vocabularies, pairs of even lengths, and the floor, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.peers import gemm
from benchmarks.peers.table import floor_of
from benchmarks.peers.workloads import (
    AROUND_PROMPT,
    CELL,
    MIXES,
    SHORT,
    WORKLOADS,
    Workload,
    cell,
    prepare,
)
from nemo_gdpo.conversion.families import read_hf_config
from nemo_gdpo.gpu_check.lengths import Lengths
from nemo_gdpo.training.throughput import FlopCount
from tests.support.models import configuration

CPU = WORKLOADS["cpu"]


def test_nothing_asked_for_changes_nothing() -> None:
    assert cell(CPU, None, None) is CPU


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("vocabulary", [32768, 131072])
def test_a_cell_takes_about_as_long_whatever_is_in_it(mix: str, vocabulary: int) -> None:
    found = cell(CPU, mix, vocabulary)
    assert (found.lengths, found.model["vocab_size"]) == (MIXES[mix], vocabulary)
    logits = found.settings.batch * found.lengths.useful * vocabulary
    assert logits <= CELL
    assert found.settings.batch == 16 or logits > CELL / 2
    assert found.settings.batch % found.settings.micro == 0
    assert found.settings.updates - found.settings.warm_ups == 1


def written(work: Workload, folder: Path) -> list[list[int]]:
    """Words of prompt, chosen and rejected of each pair."""
    prepare("some", folder, work)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    sides = ("prompt", "chosen", "rejected")
    return [[len(row[side][0]["content"].split()) for side in sides] for row in rows]


def test_the_warm_up_of_a_cell_is_short(tmp_path: Path) -> None:
    work = cell(WORKLOADS["quick"], "summaries", 500)
    work = replace(work, settings=replace(work.settings, max_length=2048))
    found, batch = written(work, tmp_path), work.settings.batch
    assert len(found) == 2 * batch
    first = [SHORT.prompt - AROUND_PROMPT, SHORT.chosen - 1, SHORT.rejected - 1]
    assert found[:batch] == [first] * batch
    assert all(sum(one) > sum(first) for one in found[batch:])


def test_even_pairs_have_the_very_lengths(tmp_path: Path) -> None:
    work = replace(WORKLOADS["quick"], lengths=Lengths(20, 30, 40), is_even=True)
    assert set(map(tuple, written(work, tmp_path))) == {(20 - AROUND_PROMPT, 29, 39)}


def test_the_floors_shapes_are_those_that_flops_are_counted_of(tmp_path: Path) -> None:
    """2 FLOPs an element of every matrix: a token's, and the head's at 0.25 labels a token."""
    configuration("llama_tied").save_pretrained(tmp_path)
    model = read_hf_config(tmp_path)
    counted = FlopCount.of(model)
    flops = sum(2 * one.times * one.inputs * one.outputs for one in gemm.matrices(model, 0.25))
    assert flops == pytest.approx(counted.per_token + 0.25 * counted.per_label)


def test_the_floor_by_hand() -> None:
    """6e9 FLOPs at 2e9 a second are 3 seconds, of two updates of 3 pairs: half a second a pair."""
    found = {"floor": {"flops": 6e9, "flops_a_second": 2e9}}
    assert floor_of(found, {"batch": 3, "updates": 3, "warm_ups": 1}) == 0.5


def test_the_rate_weighs_shapes_by_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of one second a product: FLOPs of all over as many seconds as there are matrices."""
    monkeypatch.setattr(gemm, "matrices", lambda *_: [gemm.Matrix(4, 8, 3), gemm.Matrix(8, 2, 0.5)])
    ticks = iter(range(1000))
    rate = gemm.flops_a_second(None, 0.5, torch.float32, lambda: next(ticks))  # type: ignore[arg-type]
    flops = 6 * gemm.ROWS * (3 * 4 * 8 + 0.5 * 8 * 2)
    assert rate == pytest.approx(flops / (3 * 1 + 0.5 * 1))
