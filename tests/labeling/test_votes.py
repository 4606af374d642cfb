"""Labels by majority, and agreement, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_gdpo.labeling.agreement import Agreement, agreement, krippendorff_alpha, percent_agreement
from nemo_gdpo.labeling.events import Outcome
from nemo_gdpo.labeling.votes import Verdict, labels
from tests.labeling.ledgers import begun, question, says


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ([], "open"),
        (["skip"], "skipped"),
        (["left"], "left"),
        (["left", "skip", "skip"], "left"),
        (["left", "right"], "conflict"),
        (["left", "right", "right"], "right"),
        (["left", "tie"], "conflict"),
        (["tie", "tie", "right"], "tie"),
        (["left", "right", "tie"], "conflict"),
    ],
)
def test_majority(tmp_path: Path, given: list[Outcome], verdict: Verdict) -> None:
    with begun(tmp_path / "l", 1) as ledger:
        ledger.answer(says(0, f"a{n}", outcome) for n, outcome in enumerate(given))
        assert labels(ledger.state())[question(0).pair].verdict == verdict


def test_a_label_tells_the_better_response_and_its_sign(tmp_path: Path) -> None:
    asked = question(0)
    with begun(tmp_path / "l", 3) as ledger:
        ledger.answer([says(0, "a", "right", strength=1.0), says(0, "b", "right", strength=2.0)])
        ledger.answer([says(0, "c", "left", strength=9.0), says(1, "a", "tie")])
        found = labels(ledger.state())
    label = found[asked.pair]
    assert (label.chosen, label.rejected) == (asked.right, asked.left)
    assert (label.sign(asked.right), label.sign(asked.left)) == (1, -1)
    assert label.strength == 1.5
    assert dict(label.votes) == {"right": 2, "left": 1}
    tie, open_ = found[question(1).pair], found[question(2).pair]
    assert (tie.sign("good 1"), tie.chosen) == (0, None)
    assert (open_.sign("good 2"), open_.chosen) == (None, None)
    with pytest.raises(ValueError, match="no such response"):
        label.sign("good 1")


def test_sources_can_be_left_out(tmp_path: Path) -> None:
    with begun(tmp_path / "l", 1) as ledger:
        ledger.answer([says(0, "ann", "left")])
        pair = question(0).pair
        assert labels(ledger.state(), sources=("person",))[pair].verdict == "left"
        assert labels(ledger.state(), sources=("judge",))[pair].verdict == "open"


def test_alpha_of_the_paper() -> None:
    """Krippendorff (2011), section C: four observers, twelve units, answers missing; alpha 0.743.

    Section B: two observers, ten units, 0.095 = 1 - 19 * 8 / (14 * 6 * 2).
    """
    units = [
        "111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3",
    ]  # fmt: skip
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    two = ["00"] * 5 + ["10", "10", "01", "01", "11"]
    assert krippendorff_alpha(two) == pytest.approx(1 - 19 * 8 / (14 * 6 * 2), abs=1e-12)


def test_agreement_at_its_ends() -> None:
    assert krippendorff_alpha(["aa", "bb"]) == 1.0
    assert krippendorff_alpha(["ab", "ab"]) == pytest.approx(1 - 3 * 4 / 8)
    assert krippendorff_alpha(["aa", "a"]) is None
    assert krippendorff_alpha([]) is None
    assert percent_agreement(["aab", "b", "cc"]) == (2 + 2) / (6 + 2)
    assert percent_agreement(["a"]) is None


def test_agreement_takes_the_latest_answers_and_passes_skips_over(tmp_path: Path) -> None:
    with begun(tmp_path / "l", 4) as ledger:
        ledger.answer([says(0, "a", "left"), says(0, "b", "right"), says(0, "b", "left")])
        ledger.answer([says(1, "a", "tie"), says(1, "b", "tie"), says(2, "a", "left")])
        ledger.answer([says(2, "b", "skip"), says(3, "c", "left")])
        assert agreement(ledger.state()) == Agreement(2, 2, 1.0, 1.0)
