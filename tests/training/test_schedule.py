"""The learning rate of every update, worked out by hand, for each schedule."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.training import OptimConfig, SchedConfig
from nemo_gdpo.training.optimizer import build_scheduler, with_own_settings


def rates(steps: int, **sched: Any) -> list[float]:
    """Rate of every update, as the loop asks for them: a step of the schedule, then the update."""
    config = RunConfig(optim=OptimConfig(lr=0.8, weight_decay=0.1, sched=SchedConfig(**sched)))
    group: dict[str, Any] = {"params": [], "lr": 0.0, "weight_decay": 0.0, "wd_mult": 1.0}
    scheduler = build_scheduler(config, SimpleNamespace(param_groups=[group]), steps)
    found = []
    for _ in range(steps):
        scheduler.step(increment=1)
        found.append(group["lr"])
        assert group["weight_decay"] == 0.1
    return found


HALF = 0.5 * (math.cos(math.pi / 4) + 1)  # a quarter of the way down
CASES: dict[str, tuple[int, dict[str, Any], list[float]]] = {
    # Full rate first, min_lr last, half way between them in the middle.
    "cosine without warm-up": (5, {}, [0.8, 0.8 * HALF, 0.4, 0.8 * (1 - HALF), 0.0]),
    "cosine to min_lr": (3, {"min_lr": 0.2}, [0.8, 0.5, 0.2]),
    # A quarter of the rate more at each update of the warm-up, the fourth has it all.
    "cosine after a linear warm-up": (
        6,
        {"warmup_steps": 4},
        [0.2, 0.4, 0.6, 0.8, 0.4, 0.0],
    ),
    "a warm-up of one update": (3, {"warmup_steps": 1}, [0.8, 0.4, 0.0]),
    "constant": (3, {"name": "constant"}, [0.8, 0.8, 0.8]),
    "constant after a linear warm-up": (
        4,
        {"name": "constant", "warmup_steps": 2},
        [0.4, 0.8, 0.8, 0.8],
    ),
    "one update": (1, {}, [0.8]),
    "two updates": (2, {"min_lr": 0.1}, [0.8, 0.1]),
    "the warm-up ends before the last update": (3, {"warmup_steps": 2}, [0.4, 0.8, 0.0]),
}


@pytest.mark.parametrize(("steps", "sched", "expected"), CASES.values(), ids=CASES)
def test_rates(steps: int, sched: dict[str, Any], expected: list[float]) -> None:
    assert rates(steps, **sched) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_a_longer_run_than_planned_stays_at_min_lr() -> None:
    """Raising trainer.max_steps makes the cosine longer; nothing goes below its end."""
    assert rates(9, min_lr=0.1)[-1] == pytest.approx(0.1)
    assert rates(9, min_lr=0.1)[:-1] == sorted(rates(9, min_lr=0.1)[:-1], reverse=True)


def test_settings_of_a_loaded_state_are_this_runs() -> None:
    groups = [
        {"max_lr": 1.0, "min_lr": 0.5, "betas": (0.1, 0.2), "eps": 1.0, "wd_mult": mult, "lr": 7.0}
        for mult in (1.0, 0.0)
    ]
    state = {"optimizer": {"param_groups": groups, "state": {0: {"exp_avg": 3}}}, "kept": 4}
    config = OptimConfig(lr=0.8, betas=(0.7, 0.9), eps=1e-6, sched=SchedConfig(min_lr=0.1))
    with_own_settings(state, config)
    for mult, group in zip((1.0, 0.0), groups, strict=True):
        assert group == {
            "max_lr": 0.8,
            "min_lr": 0.1,
            "betas": (0.7, 0.9),
            "eps": 1e-6,
            "wd_mult": mult,
            "lr": 7.0,  # the schedule sets it
        }
    assert state["kept"] == 4
