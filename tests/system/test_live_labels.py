"""ADPO that asks people: `label.ledger`, stopped while they answer, and going on from there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_gdpo.labeling.ledger import Ledger
from tests.support.answer_ledger import OWN_METRICS
from tests.support.checkpoints import stored
from tests.support.commands import Result, common, metrics, several, steps, without_timing
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = pytest.mark.parallel

PAIRS, STEPS = 12, 3


@dataclass(frozen=True)
class Setting:
    root: Path
    done: dict[str, Result]

    def lines(self, name: str) -> list[dict[str, Any]]:
        lines = without_timing(metrics(self.root / name))
        return [{k: v for k, v in line.items() if k not in OWN_METRICS} for line in lines]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return stored(self.root / name / "checkpoints" / f"step_{STEPS:08d}")


def run(root: Path, name: str, *more: str) -> list[str]:
    return [
        "train",
        *common(root / "model", root / "train.jsonl", root / name, "objective=adpo"),
        "optim=adamw_constant",
        *steps(STEPS),
        *more,
    ]


def answers(root: Path, ledger: str, how: str = "true") -> list[str]:
    return [
        "!", sys.executable, "-m", "tests.support.answer_ledger",
        str(root / ledger), str(root / "train.jsonl"), how,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("live")
    save_model(root / "model")
    write_jsonl(root / "train.jsonl", pairs(PAIRS))
    write_jsonl(root / "other.jsonl", pairs(PAIRS, seed=5))
    ask_all = "objective.gamma=50.0"
    some = "objective.gamma=0.02"

    def live(name: str, *more: str) -> list[str]:
        return run(root, name, f"label.ledger={root / name}.sqlite", *more)

    cases = {
        "simulated": run(root, "simulated", ask_all),
        "asked 1": live("asked", ask_all, "label.most_open=4"),
        "asked 1, again": live("asked", ask_all, "label.most_open=4"),
        "answers 1": answers(root, "asked.sqlite"),
        "asked 2": live("asked", ask_all, "label.most_open=4"),
        "answers 2": answers(root, "asked.sqlite"),
        "asked 3": live("asked", ask_all, "label.most_open=4"),
        "answers 3": answers(root, "asked.sqlite"),
        "asked 4": live("asked", ask_all, "label.most_open=4"),
        "sure 1": live("sure", some, "label.most_open=4"),
        "sure, answers 1": answers(root, "sure.sqlite"),
        "sure 2": live("sure", some, "label.most_open=4"),
        "sure, answers 2": answers(root, "sure.sqlite"),
        "sure 3": live("sure", some, "label.most_open=4"),
        "sure, answers 3": answers(root, "sure.sqlite"),
        "sure 4": live("sure", some, "label.most_open=4"),
        "turned 1": live("turned", ask_all),
        "turned, answers": answers(root, "turned.sqlite", "turned"),
        "turned 2": live("turned", ask_all),
        "tie 1": live("tie", ask_all),
        "tie, answers": answers(root, "tie.sqlite", "tie"),
        "tie 2": live("tie", ask_all),
        "budget": live("budget", ask_all, "label.budget=3"),
        "other data": run(
            root, "never", f"label.ledger={root / 'asked.sqlite'}",
            f"data.train_path={root / 'other.jsonl'}",
        ),
        "dpo": [*live("never"), "objective=dpo"],
        "no ledger": run(root, "never", "label.budget=3"),
        "resumed without": run(root, "turned", ask_all),
    }  # fmt: skip
    return Setting(root, several(root / "logs", cases))


def test_it_stops_for_people_and_goes_on(setting: Setting) -> None:
    done = setting.done
    assert [done[f"asked {n}"].status for n in (1, 2, 3, 4)] == [75, 75, 75, 0]
    first = done["asked 1"].err
    assert "stopped (no batch): 4 pairs wait for an answer in" in first
    assert "label.ledger=asked.sqlite, then label import); before the first of 3 steps" in first
    second = done["asked 2"].err
    assert "step_00000001 is written, and the same command goes on from there" in second


def test_asking_again_asks_nothing_twice(setting: Setting) -> None:
    assert setting.done["asked 1, again"].status == 75
    with Ledger(setting.root / "asked.sqlite") as ledger:
        state = ledger.state()
    assert len(state.asked) == PAIRS
    # At the first step the policy is its reference, and each question says what the model thought.
    margins = [asked.question.margin for asked in state.asked.values()]
    assert margins[:4] == pytest.approx([0.0] * 4, abs=1e-6)
    assert all(margin is not None and abs(margin) > 1e-5 for margin in margins[4:])


def test_people_who_say_what_the_data_says_are_the_simulation(setting: Setting) -> None:
    """To the bit, over three stops: losses, counts and weights."""
    assert setting.lines("asked") == setting.lines("simulated")
    weights = setting.weights("asked")
    for name, value in setting.weights("simulated").items():
        assert torch.equal(weights[name], value), name


def test_sure_pairs_train_on_the_models_own_verdict(setting: Setting) -> None:
    lines = metrics(setting.root / "sure")
    assert len(lines) == STEPS
    assert setting.done["sure 4"].status == 0
    with Ledger(setting.root / "sure.sqlite") as ledger:
        asked = len(ledger.state().asked)
    assert 4 <= asked < PAIRS
    assert lines[-1]["adpo/queries_total"] == asked
    assert min(line["adpo/query_rate"] for line in lines) < 1.0


def test_the_answer_counts_and_not_the_data(setting: Setting) -> None:
    """Everybody says the other response: the margin falls where it rises with the data's word."""
    assert setting.done["turned 2"].status == 0
    turned, true = setting.lines("turned"), setting.lines("simulated")
    assert turned[-1]["rewards/margins"] < 0 < true[-1]["rewards/margins"]
    assert turned[0]["loss"] == pytest.approx(true[0]["loss"])


def test_a_tie_pulls_to_neither_side(setting: Setting) -> None:
    assert setting.done["tie 2"].status == 0
    first, *later = setting.lines("tie")
    assert first["loss"] == pytest.approx(0.693147, rel=1e-6)
    assert first["grad_norm"] == pytest.approx(0.0, abs=1e-5)
    # Rounding, which Adam makes as large as anything, has moved the others a little.
    for line, moved in zip(later, setting.lines("simulated")[1:], strict=True):
        assert abs(line["rewards/margins"]) < 0.1 * abs(moved["rewards/margins"])


def test_a_budget_is_kept(setting: Setting) -> None:
    result = setting.done["budget"]
    assert result.status == 75
    assert "the budget of" in result.err
    assert "is used up, and 3 of the pairs" in result.err
    with Ledger(setting.root / "budget.sqlite") as ledger:
        assert len(ledger.state().asked) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other data", "is of another data set"),
        ("dpo", "label.ledger: objective=dpo asks for no label"),
        ("no ledger", "label.budget: nothing reads it with label.ledger=null"),
        ("resumed without", "another label.ledger"),
    ],
)
def test_refused(setting: Setting, name: str, said: str) -> None:
    result = setting.done[name]
    assert result.status == 2, result.err
    assert said in result.err
    assert "Traceback" not in result.err
