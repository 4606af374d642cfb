"""Runs that go on from another run's result and keep to the first reference: `reference_model`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Result, common, metrics, several, steps, without_timing
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = pytest.mark.parallel

ADAPTERS = ["lora.rank=4", "lora.alpha=8"]


@dataclass(frozen=True)
class Setting:
    root: Path
    done: dict[str, Result]

    def lines(self, name: str) -> list[dict[str, Any]]:
        return without_timing(metrics(self.root / name))


def run(root: Path, name: str, *more: str, model: str = "model") -> list[str]:
    return [
        "train",
        *common(root / model, root / "train.jsonl", root / name, "objective=dpo"),
        "optim=adamw_constant",
        "optim.lr=1e-3",
        *steps(2),
        *more,
    ]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("reference-model")
    save_model(root / "model")
    save_model(root / "wider", hidden_size=64)
    write_jsonl(root / "train.jsonl", pairs(8))
    base = f"reference_model={root / 'model'}"
    shared = f"reference_cache_dir={root / 'cache'}"
    after = ["export_hf=true"]
    adapter = f"lora.restore_from_path={root / 'adapter' / 'peft'}"
    cases = {
        "first": run(root, "first", *after, shared),
        "second, computed": run(root, "computed", base, model="first/hf"),
        "second, found": run(root, "found", base, shared, model="first/hf"),
        "itself": run(root, "itself", base),
        "adapter": run(root, "adapter", *ADAPTERS, *after),
        "adapter, computed": run(root, "adapter-computed", *ADAPTERS, adapter, base),
        "adapter, off": run(root, "adapter-off", *ADAPTERS, adapter, base, "reference=adapter_off"),
        "wider": run(root, "never", f"reference_model={root / 'wider'}"),
        "missing": run(root, "never", f"reference_model={root / 'nowhere'}"),
        "resident": run(root, "never", base, "reference=resident"),
        "another base off": run(
            root, "never", *ADAPTERS, f"reference_model={root / 'wider'}", "reference=adapter_off"
        ),
        "another reference on resume": run(
            root, "computed", f"reference_model={root / 'first' / 'hf'}", model="first/hf"
        ),
    }
    return Setting(root, several(root / "logs", cases))


def test_they_train(setting: Setting) -> None:
    for name in list(setting.done)[:7]:
        assert setting.done[name].status == 0, f"{name}: {setting.done[name].err}"


def test_the_reference_is_the_first_ones(setting: Setting) -> None:
    """Its cache is found under the same key, and computed anew it has the same values."""
    assert f"reference train: reused {setting.root / 'cache'}" in setting.done["second, found"].out
    assert setting.lines("computed") == setting.lines("found")
    first, second = setting.lines("first")[0], setting.lines("computed")[0]
    # Another order of the same pairs would show: the batch is the same at the same step.
    assert second["reference_logps/chosen"] == first["reference_logps/chosen"]


def test_the_policy_goes_on_from_the_second_model(setting: Setting) -> None:
    """Its log-probs are not those of the reference, whose weights it had while they were made."""
    line = setting.lines("computed")[0]
    assert abs(line["logps/chosen"] - line["reference_logps/chosen"]) > 0.05
    assert abs(line["loss"] - 0.693147) > 1e-3


def test_that_step_0_checks_nothing_is_said(setting: Setting) -> None:
    said = "the losses of step 0 are not compared"
    assert all(said in setting.done[f"second, {name}"].out for name in ("computed", "found"))
    assert said not in setting.done["itself"].out
    assert said not in setting.done["adapter"].out


def test_a_reference_that_is_the_start_changes_nothing(setting: Setting) -> None:
    assert setting.lines("itself") == setting.lines("first")


def test_an_adapter_taken_up_against_its_base(setting: Setting) -> None:
    computed, off = setting.lines("adapter-computed"), setting.lines("adapter-off")
    for line, expected in zip(computed, off, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert line["logps/chosen"] == pytest.approx(expected["logps/chosen"], rel=1e-6)
    assert computed[0]["reference_logps/chosen"] == setting.lines("adapter")[0]["logps/chosen"]
    assert abs(computed[0]["loss"] - 0.693147) > 1e-4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wider", "reference_model: "),
        ("missing", "nowhere does not exist; give a model's directory"),
        ("resident", "reference=resident keeps a copy of what training starts from"),
        ("another base off", "adapter_off is model.restore_from_path alone"),
        ("another reference on resume", "weights of reference_model"),
    ],
)
def test_refused(setting: Setting, name: str, said: str) -> None:
    result = setting.done[name]
    assert result.status == 2, result.err
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (setting.root / "never").exists()


def test_it_is_in_the_record(setting: Setting) -> None:
    record = json.loads((setting.root / "computed" / "identity.json").read_text())
    weights = json.loads((setting.root / "first" / "identity.json").read_text())["weights"]
    assert record["settings"]["weights of reference_model"] == weights
