"""The figures of `benchmarks.fp8_rehearsal`, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.fp8_rehearsal.figures import margins, moved, residual_movement, token_movement
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
