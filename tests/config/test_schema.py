"""The schema: equal to the objectives' dataclasses, strict about keys, types and ranges."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from nemo_gdpo import objectives
from nemo_gdpo.config import RunConfig, objective_kwargs, parse_config
from nemo_gdpo.config.objective import OBJECTIVE_SECTIONS
from nemo_gdpo.config.schema import dotted_keys, parse_leniently
from nemo_gdpo.errors import UserError

DATACLASSES = {
    "dpo": objectives.DPO,
    "ipo": objectives.IPO,
    "odpo": objectives.ODPO,
    "adpo": objectives.ADPO,
    "gdpo": objectives.GDPO,
}


@pytest.mark.parametrize("name", sorted(DATACLASSES))
def test_objective_section_mirrors_its_dataclass(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(DATACLASSES[name])}
    parsed_name, kwargs = objective_kwargs(parse_config({"objective": {"name": name}}))
    assert parsed_name == name
    assert kwargs == fields
    assert [type(value) for value in kwargs.values()] == [type(value) for value in fields.values()]
    assert DATACLASSES[name](**kwargs) == DATACLASSES[name]()


def test_every_objective_has_a_section() -> None:
    assert set(OBJECTIVE_SECTIONS) == set(DATACLASSES)


@pytest.mark.parametrize(
    ("objective", "values"),
    [
        ("dpo", {"beta": [0.0, -1.0, math.inf], "label_smoothing": [-0.1, 0.5]}),
        ("ipo", {"beta": [0.0]}),
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
                DATACLASSES[objective](**{key: value})


def test_infinite_gamma_is_plain_dpo_and_allowed() -> None:
    config = parse_config({"objective": {"name": "adpo", "gamma": math.inf}})
    assert objective_kwargs(config)[1]["gamma"] == math.inf


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
        ({"precision": "fp9"}, "precision: 'fp9' is not one of fp32, bf16, fp8_delayed"),
        ({"objective": {"name": "gpdo"}}, "objective.name: gpdo is not an objective"),
        ({"trainer": {"max_epoch": 1}}, r"did you mean trainer.max_epochs\?"),
        ({"objective": {"name": "dpo", "alpha": 1.0}}, "objective=dpo has no such setting"),
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
    parsed, found = parse_leniently(
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
    assert objective_kwargs(parsed)[1]["alpha"] == 2.0
    assert parsed.optim.eps == 1e-6


def test_every_field_is_documented() -> None:
    sections = [type(getattr(RunConfig(), name)) for name in ("model", "data", "optim", "trainer")]
    for section in [RunConfig, *sections, *OBJECTIVE_SECTIONS.values()]:
        for name, field in section.model_fields.items():
            is_section = hasattr(field.annotation, "model_fields") or name == "objective"
            assert is_section or name == "name" or field.description, f"{section}.{name}"


def test_dotted_keys_of_one_objective() -> None:
    assert "objective.label_smoothing" in dotted_keys("dpo")
    assert "objective.label_smoothing" not in dotted_keys("gdpo")
    assert "optim.sched.warmup_steps" in dotted_keys("gdpo")
