"""`nemo-gdpo label margins` on two ranks: of the model before training, and of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_gdpo.data.keyed import keyed_pairs
from nemo_gdpo.labeling.choose import read_margins
from tests.support.commands import Result, common, metrics, several
from tests.support.data import pairs, write_jsonl

ADPO = ["objective=adpo", "objective.gamma=0.05", "trainer.max_steps=4"]


def test_margins_are_those_of_the_run(tmp_path: Path, model: Path) -> None:
    """Before the first update all are 0. After four, their mean is the validation's on the same
    pairs at the same step, computed by training itself; what they are of is said."""
    data = write_jsonl(tmp_path / "train.jsonl", pairs(14))
    output = tmp_path / "run"
    given = common(
        model, data, output, *ADPO, f"data.validation_path={data}", "trainer.val_check_interval=4"
    )
    folder, ledger = output / "margins", tmp_path / "labels.sqlite"
    select = [
        "label", "select", f"label.ledger={ledger}", f"data.train_path={data}", "label.count=3",
        f"label.margins={folder / 'step_00000004.jsonl'}",
    ]  # fmt: skip
    cases = {
        "before": ["label", "margins", *given],
        "train": ["train", *given],
        "after": ["label", "margins", *given],
        "other": ["label", "margins", *given, "objective.beta=0.7"],
    }
    done = several(tmp_path / "logs", cases, ranks=2)
    done |= several(tmp_path / "alone", {"select": select})
    assert {name: result.status for name, result in done.items()} == {
        "before": 0, "train": 0, "after": 0, "other": 2, "select": 0,
    }, done  # fmt: skip
    before, after = (read_margins(folder / f"step_{n:08d}.jsonl") for n in (0, 4))
    identity, of_key = keyed_pairs(str(data), format="auto", split="train", on_bad_pair="error")
    assert before.data == after.data == identity.data
    assert before.of_pair == dict.fromkeys(of_key, 0.0)
    assert after.of_pair.keys() == of_key.keys()
    mean = sum(after.of_pair.values()) / len(after.of_pair)
    assert mean == pytest.approx(metrics(output)[-1]["val/rewards/margins"], rel=1e-5)
    assert len(set(after.of_pair.values())) == len(of_key)
    assert (before.base, before.step, after.step) == (after.base, 0, 4)
    assert before.model == before.base != after.model
    _refused_by_name(done["other"])
    assert "round 1: asked about 3 pairs" in done["select"].out


def _refused_by_name(result: Result) -> None:
    (line,) = result.complaints
    assert "objective" in line
