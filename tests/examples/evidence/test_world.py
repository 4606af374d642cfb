"""Which records count, whose models they are of, and which pairs an arm trains on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.film_reviews.evidence import world as world_module
from examples.film_reviews.evidence.arms import BY_NAME, Job
from examples.film_reviews.evidence.job import train_path
from examples.film_reviews.evidence.settings import QUICK
from examples.film_reviews.evidence.world import World
from nemo_gdpo.errors import UserError

ADPO, RANDOM, DPO = (Job(BY_NAME[n], 1) for n in ("adpo-g0.3", "random-g0.3", "dpo-b0.1"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path / "run", tmp_path / "records", "quick")
    found.model.mkdir(parents=True)
    (found.model / "model.safetensors").write_bytes(b"weights")
    found.data(1).mkdir(parents=True)
    lines = "".join(json.dumps({"id": n}) + "\n" for n in range(16))
    (found.data(1) / "train.jsonl").write_text(lines)
    found.records_dir.mkdir()
    return found


def note(world: World, job: Job, **more: Any) -> None:
    record = {"identity": world.identity(job), "model": world.fingerprint(), **more}
    world.record(job).write_text(json.dumps(record))


def test_a_record_counts_while_its_settings_are_the_present_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.known(DPO) is None
    note(world, DPO)
    assert world.known(DPO) is not None
    other = replace(QUICK, learning_rate=2 * QUICK.learning_rate)
    monkeypatch.setitem(world_module.SETTINGS, "quick", other)
    assert world.known(DPO) is None


def test_records_of_another_model_get_no_company(world: World) -> None:
    note(world, DPO)
    world.refuse_other_models([DPO, ADPO])
    (world.model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"dpo-b0\.1--seed-1\.json: made from another model than"):
        world.refuse_other_models([DPO, ADPO])


def test_as_many_random_pairs_as_labels_were_asked(world: World) -> None:
    note(world, ADPO, labels=11)
    lines = train_path(RANDOM, world).read_text().splitlines()
    everything = (world.data(1) / "train.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 11
    assert set(lines) < set(everything) and lines != everything[:11]
    assert train_path(DPO, world) == world.data(1) / "train.jsonl"


def test_never_fewer_than_a_batch(world: World) -> None:
    note(world, ADPO, labels=3)
    assert len(train_path(RANDOM, world).read_text().splitlines()) == QUICK.batch == 8


def test_without_the_arm_that_asked_there_is_no_number(world: World) -> None:
    with pytest.raises(UserError, match=r"random-g0\.3--seed-1: needs the record of adpo-g0\.3"):
        train_path(RANDOM, world)
