"""The figures of `benchmarks.fp8_rehearsal`, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.fp8_rehearsal.__main__ import _options, main
from benchmarks.fp8_rehearsal.figures import margins, moved, residual_movement, token_movement
from benchmarks.fp8_rehearsal.settings import OBJECTIVES, train_file
from benchmarks.fp8_rehearsal.tables import NOT_MEASURED, over_seeds
from nemo_gdpo.objectives import DPO, GDPO, PairLogps, TokenLogps

MASK = torch.tensor([[True, True, True]])


def side(label: list[float], eos: list[float], tempered: list[float]) -> TokenLogps:
    columns = (torch.tensor([one]) for one in (label, eos, tempered))
    label_NT, eos_NT, tempered_NT = columns
    return TokenLogps(label_NT, MASK, eos_NT, tempered_NT, torch.tensor([True]))


NOTHING = side([0.0] * 3, [0.0] * 3, [0.0] * 3)
PLAIN = PairLogps(NOTHING, NOTHING)
# In a complete response the last position's label is EOS itself.
OTHER = PairLogps(side([1.0, 2.0, 3.0], [0.5, 1.0, 3.0], [5.0, 10.0, 30.0]), NOTHING)


def test_tokens_and_margins() -> None:
    change = moved(OTHER, PLAIN)
    assert token_movement(change) == pytest.approx(math.sqrt(14 / 6))
    assert margins(change).tolist() == [6.0]


@pytest.mark.parametrize("objective", [DPO(), GDPO(balance="tb")])
def test_a_pairs_residual_is_its_log_ratio(objective: DPO | GDPO) -> None:
    change, same = moved(OTHER, PLAIN), moved(PLAIN, PLAIN)
    assert residual_movement(objective, change, same) == pytest.approx(6.0)
    assert residual_movement(objective, change, change) == 0.0


def test_transitions() -> None:
    """delta_0 = 1 + 1 - 0.5 and delta_1 = 2 + 3 - 1, of four transitions in both responses."""
    change, same = moved(OTHER, PLAIN), moved(PLAIN, PLAIN)
    expected = math.sqrt((1.5**2 + 4.0**2) / 4)
    assert residual_movement(GDPO(balance="db"), change, same) == pytest.approx(expected)


def test_a_tempered_reference_does_not_cancel() -> None:
    """e - E is -4.5, -9 and -27: delta is -4.5 and -18."""
    change = moved(OTHER, PLAIN)
    expected = math.sqrt((4.5**2 + 18.0**2) / 4)
    tempered = GDPO(balance="db", eos_temperature=0.1)
    assert residual_movement(tempered, change, change) == pytest.approx(expected)


def test_what_is_not_there_is_not_measured() -> None:
    assert over_seeds([]) == NOT_MEASURED
    assert over_seeds([1.0, 2.0, 3.0]) == "2 (1 to 3)"


def test_what_is_left_out_without_full(tmp_path: Path) -> None:
    """--tables reads no model."""
    argv = ["--folder", str(tmp_path), "--tables"]
    some, given = _options(argv)
    assert (some.seeds, some.batch, len(some.recipes), given.minutes) == ((1,), 2, 1, 20)
    whole, given = _options([*argv, "--full", "--seeds", "2"])
    assert (whole.seeds, whole.batch, whole.objectives) == ((1, 2), 8, tuple(OBJECTIVES))
    assert len(whole.recipes) == 3 and given.minutes == math.inf
    # A training of other updates is another file.
    assert train_file(some, "dpo", "fp32", 1) != train_file(whole, "dpo", "fp32", 1)


def test_the_table_is_of_the_trainings_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--folder", str(tmp_path), "--tables", "--objectives", "dpo"]
    some, _ = _options(argv)
    for recipe, loss in (("fp32", 0.5), ("tensorwise", 0.75)):
        path = train_file(some, "dpo", recipe, 1)
        path.parent.mkdir(exist_ok=True)
        found = {"losses": [], "validation": loss, "passed_step0": True}
        path.write_text(json.dumps(found))
    main(argv)
    said = capsys.readouterr().out
    assert "| validation loss after 30 steps of 2 pairs |" in said
    assert "| dpo | fp32 | 0.5 | |\n| dpo | tensorwise | 0.75 | 0.25 |" in said
