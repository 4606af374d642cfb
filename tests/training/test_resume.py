"""Whose checkpoints are these: another run's are refused, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.base import FIXED
from nemo_gdpo.config.help import Key, keys
from nemo_gdpo.config.lora import LoraConfig
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.manifest import describe, write_manifest
from nemo_gdpo.objectives import DPO, GDPO, OBJECTIVES
from nemo_gdpo.training.checkpoint import step_directory
from nemo_gdpo.training.resume import (
    _check_identity,
    _leaves,
    find_newest,
    identity_of,
    refuse_unreadable_metrics,
)

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


FIXED_KEYS = [key for key in keys(TRAIN) if key.on_resume is FIXED]


def _other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return value[1:]
    return "another" if isinstance(value, str) or value is None else value + 0.5


@pytest.mark.parametrize("key", FIXED_KEYS, ids=[f"{k.name} {k.owners}" for k in FIXED_KEYS])
def test_a_key_that_may_not_change_is_refused_with_both_values(key: Key) -> None:
    own = identity_of(RunConfig(objective=OBJECTIVES[key.owners[0] if key.owners else "dpo"]()), "")
    own["settings"]["data.date"] = None  # as a run has it: the day in its tokens
    saved = json.loads(json.dumps(own))
    section, _, name = key.name.partition(".")
    where = (
        saved["objective"]
        if section == "objective"
        else saved["settings"]
        if key.name in saved["settings"]
        else saved
    )
    known = key.name if where is saved["settings"] else name or section
    before = where[known]
    where[known] = _other(before)
    shown = key.name if section == "objective" else known
    with pytest.raises(UserError) as refused:
        _check_identity(saved, own, CHECKPOINT)
    assert f"({shown}: {where[known]}, now {before})" in str(refused.value)


def test_an_identity_of_an_earlier_version() -> None:
    """Before settings had their own place, the optimizer's were there."""
    saved = {k: v for k, v in identity().items() if k != "settings"}
    _check_identity(saved, identity(), CHECKPOINT)
    saved["optim"] = saved["optim"] | {"use_distributed_optimizer": True}
    with pytest.raises(UserError, match=r"optim.use_distributed_optimizer: True, now False"):
        _check_identity(saved, identity(), CHECKPOINT)


def test_adapters_of_an_earlier_version_were_over_the_base_as_it_is() -> None:
    own = identity_of(RunConfig(objective=DPO(beta=0.2), lora=LoraConfig(rank=4)), "abc")
    saved = json.loads(json.dumps(own))
    del saved["settings"]["lora.base_precision"]
    _check_identity(saved, own, CHECKPOINT)
    own["settings"]["lora.base_precision"] = "nf4"
    with pytest.raises(UserError, match=r"\(lora.base_precision: run, now nf4\)"):
        _check_identity(saved, own, CHECKPOINT)


class TestUnusable:
    def _checkpoint(self, root: Path, step: int, *, whole: bool) -> None:
        directory = step_directory(root, step)
        directory.mkdir(parents=True)
        state = {"identity": identity(), "step": step}
        (directory / "trainer_state.json").write_text(json.dumps(state))
        write_manifest(directory, describe(directory, ["trainer_state.json"]))
        if not whole:
            (directory / "manifest.json").unlink()

    def test_no_checkpoint_is_a_new_run(self, tmp_path: Path) -> None:
        assert find_newest(tmp_path, identity()).found.path is None

    def test_an_older_whole_one_is_taken(self, tmp_path: Path) -> None:
        self._checkpoint(tmp_path, 2, whole=True)
        self._checkpoint(tmp_path, 4, whole=False)
        found = find_newest(tmp_path, identity())
        assert found.found.path == step_directory(tmp_path, 2)
        (line,) = found.found.skipped
        assert line.startswith("checkpoint step_00000004 skipped: it has no manifest.json")

    def test_none_whole_is_not_none(self, tmp_path: Path) -> None:
        self._checkpoint(tmp_path, 2, whole=False)
        self._checkpoint(tmp_path, 4, whole=False)
        with pytest.raises(
            UserError, match=r"none of the 2 checkpoints in .* \(step_00000004 skip"
        ):
            find_newest(tmp_path, identity())

    def test_what_was_found_holds_while_the_same_are_there(self, tmp_path: Path) -> None:
        self._checkpoint(tmp_path, 2, whole=True)
        known = find_newest(tmp_path, identity())
        assert find_newest(tmp_path, identity(), known) is known
        self._checkpoint(tmp_path, 3, whole=True)
        newer = find_newest(tmp_path, identity(), known)
        assert newer.found.path == step_directory(tmp_path, 3)

    @pytest.mark.parametrize(
        ("text", "line"),
        [('{"step": 0}\nnonsense\n', 2), ('{"loss": 1}\n', 1), ("[]\n", 1), ("\x00\n", 1)],
    )
    def test_metrics_that_cannot_be_read(self, tmp_path: Path, text: str, line: int) -> None:
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match=rf"metrics.jsonl, line {line}: not the line of a step"):
            refuse_unreadable_metrics(tmp_path)

    def test_a_torn_last_line_is_nothing(self, tmp_path: Path) -> None:
        refuse_unreadable_metrics(tmp_path)  # nor is no file
        (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"ste')
        refuse_unreadable_metrics(tmp_path)


def test_leaves_of_nested_settings() -> None:
    assert _leaves({"a": {"b": 1, "c": {"d": None}}, "e": [2]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [2],
    }
