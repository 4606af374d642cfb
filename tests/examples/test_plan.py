"""Which jobs there are, what fits, what waits for what, what a failure does."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from examples.film_reviews.experiment.arms import ARMS, BY_NAME, Job, jobs, needed
from examples.film_reviews.experiment.plan import RESERVE, Costs, execute, plan
from examples.film_reviews.experiment.settings import FULL, UNSEEN
from examples.film_reviews.experiment.stages import StageError, StoppedError
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.config.validate import problems_of_mapping


def job(name: str, seed: int = 1) -> Job:
    return Job(BY_NAME[name], seed)


def test_arms_are_those_of_the_question() -> None:
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names)
    for balance in ("db", "subtb", "tb"):
        assert sum(name.startswith(f"gdpo-{balance}-k") for name in names) == 2
    for name in ("base", "dpo", "ipo", "odpo", "adpo", "dpo-random", "gdpo-released"):
        assert name in names
    assert FULL.updates * FULL.batch == FULL.pairs
    assert len(UNSEEN) == FULL.prompts - 8 and len(set(UNSEEN)) == len(UNSEEN)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.objective], ids=lambda arm: arm.name)
def test_every_arms_configuration_is_sound(arm: Any) -> None:
    composed = compose(["experiment=demo", "model.restore_from_path=x", *arm.overrides()], TRAIN)
    config, found = problems_of_mapping(composed.plain, None, files=False)
    assert found == []
    assert config.objective.name == arm.objective["name"]
    for key, value in arm.objective.items():
        assert composed.plain["objective"][key] == value
    # The columns that the arm says it needs are those that its objective reads.
    objective = composed.plain["objective"]
    columns = "label" if objective["name"] != "gdpo" else "label+eos"
    if objective.get("eos_temperature", 1.0) != 1.0:
        columns += "+tempered"
    assert arm.cache == columns


def test_every_arm_once_then_seeds_of_the_main_ones() -> None:
    found = jobs(ARMS, 3)
    assert [j.seed for j in found[: len(ARMS)]] == [1] * len(ARMS)
    rest = found[len(ARMS) :]
    assert {j.arm.name for j in rest} == {arm.name for arm in ARMS if arm.main}
    assert [j.seed for j in rest] == sorted(j.seed for j in rest)
    assert needed(job("dpo-random", 2)) == job("adpo", 2) and needed(job("dpo")) is None
    # What is needed comes first.
    for one in found:
        before = needed(one)
        assert before is None or found.index(before) < found.index(one)


def costs(seconds: float) -> Costs:
    stages = ("reference", "train", "generate", "evaluate", "evaluate base")
    return Costs(FULL, {stage: [seconds] for stage in stages})


def test_plan_fills_workers_and_leaves_out_what_does_not_fit() -> None:
    todo = [job("base"), job("dpo"), job("ipo"), job("gdpo-tb-k8")]
    lines = plan(todo, costs(100.0), workers=2, budget=RESERVE + 500.0, done=frozenset())
    spans = {line.job.arm.name: (line.begin, line.end, line.fits) for line in lines}
    assert spans["base"] == (0.0, 200.0, True)  # sampling and measuring
    assert spans["dpo"] == (0.0, 400.0, True)
    assert spans["ipo"] == (200.0, 500.0, True)  # DPO has made the reference
    assert spans["gdpo-tb-k8"] == (400.0, 800.0, False)
    done = plan(todo, costs(100.0), workers=2, budget=RESERVE + 500.0, done=frozenset(todo[:3]))
    assert done[3].fits and done[3].end == 400.0


def test_plan_waits_for_the_number_of_labels() -> None:
    todo = [job("adpo"), job("dpo-random")]
    lines = plan(todo, costs(10.0), workers=2, budget=1e6, done=frozenset())
    assert lines[1].begin == lines[0].end == 40.0
    small = plan(todo, costs(10.0), workers=2, budget=RESERVE + 30, done=frozenset())
    assert [line.fits for line in small] == [False, False]


def noted(seconds: float = 1.0) -> dict[str, Any]:
    return {"seconds": {"train": seconds}}


def test_execution_waits_runs_side_by_side_and_learns() -> None:
    todo = [job("adpo"), job("dpo-random"), job("dpo")]
    order: list[str] = []
    at_once, most = 0, 0
    guard = threading.Lock()

    def run(one: Job) -> dict[str, Any]:
        nonlocal at_once, most
        with guard:
            order.append(one.arm.name)
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with guard:
            at_once -= 1
        return noted(50.0)

    known = costs(1.0)
    outcome = execute(todo, known, run, workers=2, budget=1e6, done={}, say=lambda text: None)
    assert set(outcome.done) == set(todo) and most == 2
    assert order[:2] == ["adpo", "dpo"] and order[2] == "dpo-random"
    assert known.measured["train"] == [1.0, 50.0, 50.0, 50.0]


def test_finished_jobs_are_skipped_and_unfitting_ones_named() -> None:
    todo = [job("base"), job("adpo"), job("dpo-random"), job("dpo")]
    ran: list[Job] = []

    def run(one: Job) -> dict[str, Any]:
        ran.append(one)
        return noted()

    outcome = execute(
        todo,
        costs(100.0),
        run,
        workers=1,
        budget=RESERVE + 300.0,
        done={todo[0]: noted()},
        say=lambda text: None,
    )
    assert ran == []
    assert outcome.left_out == todo[1:]
    assert list(outcome.done) == [todo[0]]


def test_one_failure_leaves_the_others_alone() -> None:
    todo = [job("adpo"), job("dpo-random"), job("dpo")]

    def run(one: Job) -> dict[str, Any]:
        if one.arm.name != "dpo":
            raise StageError(f"{one.name} broke")
        return noted()

    outcome = execute(todo, costs(1.0), run, workers=1, budget=1e6, done={}, say=lambda text: None)
    assert list(outcome.done) == [todo[2]]
    assert set(outcome.failed) == {todo[0], todo[1]}


def test_a_signal_ends_everything() -> None:
    def run(one: Job) -> dict[str, Any]:
        raise StoppedError

    with pytest.raises(StoppedError):
        execute([job("dpo")], costs(1.0), run, workers=1, budget=1e6, done={}, say=print)
