"""Whose checkpoints are these: another run's are refused, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.objectives import DPO, GDPO
from nemo_gdpo.training.resume import _check_identity, _leaves, identity_of

CHECKPOINT = Path("checkpoints/step_00000003")


def identity(**changes: Any) -> dict[str, Any]:
    return identity_of(RunConfig(objective=DPO(beta=0.2)), "abc") | changes


@pytest.mark.parametrize("name", ["weights", "global_batch_size", "precision"])
def test_another_run_is_refused_by_the_first_thing_that_differs(name: str) -> None:
    with pytest.raises(UserError, match=rf"another {name} \({name}: other, now "):
        _check_identity(identity(**{name: "other"}), identity(), CHECKPOINT)


def test_another_objective_is_refused() -> None:
    other = identity_of(RunConfig(objective=GDPO()), "abc")
    with pytest.raises(UserError, match=r"made with another objective"):
        _check_identity(other, identity(), CHECKPOINT)
    other = identity_of(RunConfig(objective=DPO(beta=0.3)), "abc")
    with pytest.raises(UserError, match=r"made with another objective"):
        _check_identity(other, identity(), CHECKPOINT)


def test_what_may_change_may_change() -> None:
    _check_identity(identity(seed=7, optim={"lr": 1.0}), identity(), CHECKPOINT)


def test_a_setting_that_came_later_was_at_its_default() -> None:
    saved = identity(objective={"name": "dpo", "beta": 0.2})  # before label smoothing, say
    _check_identity(saved, identity(), CHECKPOINT)
    smoothed = identity_of(RunConfig(objective=DPO(beta=0.2, label_smoothing=0.1)), "abc")
    with pytest.raises(UserError, match="another objective"):
        _check_identity(saved, smoothed, CHECKPOINT)


def test_leaves_of_nested_settings() -> None:
    assert _leaves({"a": {"b": 1, "c": {"d": None}}, "e": [2]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [2],
    }
