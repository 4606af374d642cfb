"""The schema: equal to the objectives' dataclasses, strict about keys, types and ranges."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from nemo_gdpo.config.base import fields_of
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.objective import (
    OBJECTIVE_SECTIONS,
    DPOSettings,
    ObjectiveSettings,
    plain_settings,
)
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.objectives import DPO, GDPO, OBJECTIVES, build_objective

parse_config = TRAIN.parse


@pytest.mark.parametrize("name", OBJECTIVES)
def test_python_and_command_line_make_the_same_objective(name: str) -> None:
    config = TRAIN.parse(compose([f"objective={name}"], TRAIN).plain)
    assert build_objective(config.objective) == OBJECTIVES[name]()
    assert RunConfig(objective=OBJECTIVES[name]()).objective.name == name


def test_a_setting_is_the_same_from_both_sides() -> None:
    composed = TRAIN.parse(compose(["objective=dpo", "objective.beta=0.3"], TRAIN).plain)
    assert build_objective(composed.objective) == DPO(beta=0.3) == DPO(0.3)
    assert build_objective(composed.objective) != DPO(beta=0.2)
    assert build_objective(RunConfig(objective=DPO(beta=0.3)).objective) == DPO(beta=0.3)


def test_an_objective_is_its_settings_with_a_loss() -> None:
    assert OBJECTIVES.keys() == OBJECTIVE_SECTIONS.keys()
    for name, objective in OBJECTIVES.items():
        assert issubclass(objective, OBJECTIVE_SECTIONS[name])
        own = {f.name for f in dataclasses.fields(objective)}
        assert own == {f.name for f in dataclasses.fields(OBJECTIVE_SECTIONS[name])}, "a new field"


def test_the_default_of_gdpo_is_the_contrastive_balance() -> None:
    assert GDPO() == GDPO(alpha=1.0, rejected_log_reward=-8.0, balance="tb", reward="cumulative")


@pytest.mark.parametrize(
    ("objective", "values"),
    [
        ("dpo", {"beta": [0.0, -1.0, math.inf], "label_smoothing": [-0.1, 0.5]}),
        ("ipo", {"beta": [0.0]}),
        ("spl", {"alpha": [0.0], "beta": [-0.1, math.inf]}),
        ("odpo", {"alpha": [-0.1, math.inf], "offset": ["sqrt"]}),
        ("adpo", {"gamma": [-1.0, math.nan]}),
        (
            "gdpo",
            {
                "alpha": [-0.1, math.inf],
                "rejected_log_reward": [1.0, -math.inf],
                "eos_temperature": [0.0],
                "balance": ["vp"],
                "subtb_lambda": [0.0],
                "reward": ["sum"],
            },
        ),
    ],
)
def test_what_the_schema_refuses_the_dataclass_refuses_too(
    objective: str, values: dict[str, list[Any]]
) -> None:
    """Otherwise one of the two would be stricter, and a run would stop after it has started."""
    for key, refused in values.items():
        for value in refused:
            with pytest.raises(UserError, match=rf"objective\.{key}"):
                parse_config({"objective": {"name": objective, key: value}})
            with pytest.raises(ValueError, match=key):
                OBJECTIVES[objective](**{key: value})


def test_infinite_gamma_is_plain_dpo_and_allowed() -> None:
    config = parse_config({"objective": {"name": "adpo", "gamma": math.inf}})
    assert plain_settings(config.objective)["gamma"] == math.inf


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seed": True}, "seed: True is not allowed"),
        ({"seed": 1.0}, "seed: 1.0 is not allowed"),
        ({"optim": {"lr": "5e-7"}}, "optim.lr: '5e-7' is not allowed"),
        ({"optim": {"betas": [0.9]}}, "optim.betas.1"),
        ({"optim": {"betas": [0.9, 1.0]}}, "optim.betas.1: 1.0 is not allowed"),
        ({"model": {"micro_batch_size": 0}}, "model.micro_batch_size: 0 is not allowed"),
        ({"data": {"train_path": ""}}, "data.train_path: '' is not allowed"),
        ({"model": None}, "model: null is not allowed"),
        ({"precision": "fp9"}, "precision: 'fp9' is not one of fp32, bf16, fp8_tensorwise"),
        (
            {"precision": "fp8_delayed"},
            "precision: fp8_delayed takes its scales from past passes.* use "
            "precision=fp8_tensorwise",
        ),
        ({"objective": {"name": "gpdo"}}, "objective.name: gpdo is not an objective"),
        ({"trainer": {"max_epoch": 1}}, r"did you mean trainer.max_epochs\?"),
        ({"objective": {"name": "dpo", "alpha": 1.0}}, "objective=dpo does not have this setting"),
        ({"extra": 1}, "extra: is not a key of the configuration"),
    ],
)
def test_strictness(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(section)


def test_integers_serve_as_real_numbers_and_lists_as_betas() -> None:
    config = parse_config({"trainer": {"max_epochs": 2}, "optim": {"betas": [0, 0.99]}})
    assert config.trainer.max_epochs == 2.0
    assert config.optim.betas == (0.0, 0.99)


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 2  # type: ignore[misc]


def test_every_fault_is_named_and_the_rest_is_kept() -> None:
    parsed, found = TRAIN.parse_leniently(
        {
            "seed": "x",
            "objective": {"name": "gdpo", "balance": "tbb", "alpha": 2.0},
            "optim": {"lr": -1.0, "betas": [0.9, 2.0], "eps": 1e-6},
            "trainer": {"steps": 3},
        }
    )
    assert [problem.key for problem in found] == [
        "seed",
        "objective.balance",
        "optim.lr",
        "optim.betas.1",
        "trainer.steps",
    ]
    assert plain_settings(parsed.objective)["alpha"] == 2.0
    assert parsed.optim.eps == 1e-6


def test_conflicting_settings_are_refused_alike_on_both_sides() -> None:
    message = "balance=tb compares whole responses, which a token-wise reward does not define"
    with pytest.raises(ValueError, match=message):
        GDPO(reward="tokenwise")
    with pytest.raises(UserError, match=f"^objective.reward: {message}; set objective.reward="):
        parse_config({"objective": {"name": "gdpo", "reward": "tokenwise"}})


def test_data_needs_are_declared_with_objective_settings() -> None:
    needing = {name for name, section in OBJECTIVE_SECTIONS.items() if section.needs_scores}
    assert needing == {"odpo", "gflownet"}
    assert not ObjectiveSettings.needs_scores
    assert "needs_scores" not in fields_of(DPOSettings)


def test_dotted_keys_of_one_objective() -> None:
    assert "objective.label_smoothing" in TRAIN.keys("dpo")
    assert "objective.label_smoothing" not in TRAIN.keys("gdpo")
    assert "optim.sched.warmup_steps" in TRAIN.keys("gdpo")
