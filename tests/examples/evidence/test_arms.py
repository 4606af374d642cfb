"""The arms: valid configurations, in an order that their needs allow, all that the issue of the
protocol asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.film_reviews.evidence.arms import ARMS, BY_NAME, NO_ARMS, Arm, Job, jobs, needed
from examples.film_reviews.evidence.job import train_overrides
from examples.film_reviews.evidence.protocol import read_protocol
from examples.film_reviews.evidence.records import BASE
from examples.film_reviews.evidence.settings import FULL, GPU, QUICK, Settings
from examples.film_reviews.evidence.world import World
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.config.validate import problems

TRAINED = [arm for arm in ARMS if arm.name != BASE]


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_every_arm_is_a_valid_run(arm: Arm, tmp_path: Path) -> None:
    world = World(tmp_path, tmp_path / "records", "cpu")
    overrides = train_overrides(Job(arm, 1), world, tmp_path / "train.jsonl")
    config = TRAIN.parse(compose(overrides, TRAIN).plain)
    assert [str(problem) for problem in problems(config, files=False)] == []
    assert config.objective.name == arm.objective["name"]
    for key, value in arm.objective.items():
        assert getattr(config.objective, key) == value


def test_an_arm_comes_after_what_it_needs() -> None:
    todo = jobs(ARMS, 5)
    assert len(set(todo)) == len(todo)
    for place, job in enumerate(todo):
        assert all(other in todo[:place] for other in needed(job)), job.name


def test_the_main_arms_have_all_seeds_before_the_others_begin() -> None:
    names = [job.name for job in jobs(ARMS, 2)]
    assert names[:7] == [
        f"{arm}--seed-1"
        for arm in (
            "base", "dpo-b0.03", "dpo-b0.1", "dpo-b0.3", "gdpo-tb-k2", "gdpo-tb-k5", "gdpo-tb-k10",
        )
    ]  # fmt: skip
    assert names[7] == "base--seed-2"
    assert names[14] == "odpo-log--seed-1"


def test_main_arms_have_five_seeds_and_the_others_their_own() -> None:
    todo = jobs(ARMS, 5)
    for name, seeds in (("dpo-b0.1", 5), ("gdpo-tb-k10", 5), ("gdpo-released", 3), ("ipo", 2)):
        assert sum(job.arm.name == name for job in todo) == seeds, name


def test_a_pilot_has_none_of_the_seeds_of_the_main_runs() -> None:
    pilot = {job.seed for job in jobs(ARMS, 2, pilot=True)}
    assert pilot == {101, 102}


def test_ipo_has_the_target_of_its_tb() -> None:
    tb, ipo = BY_NAME["gdpo-tb-k5"].objective, BY_NAME["ipo"].objective
    assert -tb["alpha"] * tb["rejected_log_reward"] == 1 / (2 * ipo["beta"]) == 5.0


def test_the_protocol_asks_about_arms_that_exist() -> None:
    known = {arm.name for arm in ARMS} | {arm.family for arm in ARMS} | set(NO_ARMS)
    for claim in read_protocol().claims:
        assert {claim.first, claim.second} <= known, claim.id


@pytest.mark.parametrize("settings", [FULL, QUICK, GPU])
def test_runs_are_measured_at_their_end(settings: Settings) -> None:
    assert settings.saves[-1] == settings.updates
    assert list(settings.saves) == sorted(settings.saves)
    assert 1.0 in settings.temperatures
