"""Trajectories do not move: each run repeats the trace recorded before the code was rearranged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.tiers import usual
from tests.traces.record import KEPT, LAYOUTS, OBJECTIVES, STEPS, record

pytestmark = pytest.mark.parallel

TRACES = Path(__file__).parents[1] / "assets" / "traces"

SQUARED = {"ipo", "gdpo_tb"}

USUAL = usual(LAYOUTS, {"one", "packed"}.__contains__)
"""On two ranks they are repeated every night: tests/parallel compares every mesh with one rank."""

Trace = dict[str, list[dict[str, float]]]


@pytest.fixture(scope="module", params=USUAL)
def traces(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trace, Trace]:
    """(recorded, found now) of one layout."""
    layout = request.param
    recorded = json.loads((TRACES / f"{layout}.json").read_text())
    return recorded, record(layout, tmp_path_factory.mktemp(layout))


def comparable(objective: str, key: str, value: float) -> float:
    """A loss that is the square of a difference of sums as that difference, as margins are one.

    Between an Intel and an AMD processor the sums are 1e-5 apart, and squares relatively twice.
    """
    return math.sqrt(value) if key == "loss" and objective in SQUARED else value


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_repeats_the_recorded_trace(traces: tuple[Trace, Trace], objective: str) -> None:
    recorded, found = traces
    assert len(recorded[objective]) == len(found[objective]) == STEPS
    for step, (before, now) in enumerate(zip(recorded[objective], found[objective], strict=True)):
        for key in KEPT:
            one, other = (comparable(objective, key, entry[key]) for entry in (now, before))
            # A margin is 0 before the first update, and a difference of sums near -70 later.
            assert one == pytest.approx(other, rel=1e-5, abs=1e-5), f"step {step}: {key}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recorded_trace_is_worth_repeating(layout: str) -> None:
    """Losses move, objectives differ: a trace of constants would hold for any code.

    `adpo` trains as `dpo` does, since its guesses agree with the data here; `adpo_no_pseudo` is the
    one that shows what is asked, and at its last step nothing is.
    """
    recorded: Trace = json.loads((TRACES / f"{layout}.json").read_text())
    assert recorded.keys() == OBJECTIVES.keys()
    for name, entries in recorded.items():
        assert len({entry["loss"] for entry in entries}) >= STEPS - 1
        moved = entries if name != "adpo_no_pseudo" else entries[:-1]
        assert all(entry["grad_norm"] > 0.1 for entry in moved)
    own = {name: entries for name, entries in recorded.items() if name != "adpo"}
    last = [entries[-1]["rewards/margins"] for entries in own.values()]
    assert len({round(margin, 4) for margin in last}) == len(last)
