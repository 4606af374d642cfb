"""Every mesh and every way of batching trains like one rank with padded micro-batches of two."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.parallel.meshes import FOUR, LAUNCHES, ONE, ONE_BY_ONE, TWO, VARIED, Case
from tests.parallel.settings import STEPS

pytestmark = pytest.mark.parallel

World = Callable[[int], dict[str, Any]]


def baseline(case: Case) -> str:
    name = "gate" if case.equal_start else "plain"
    return Case(name, case.objective, model=case.model, adapters=case.adapters, data=case.data).key


VARIANTS = [
    pytest.param(size, case, id=f"{size} ranks-{case.key}")
    for size, cases in LAUNCHES.items()
    for case in cases
    if not (size == 1 and case.name in {"plain", "gate"})
]


def test_every_variant_has_its_baseline() -> None:
    plain = {case.key for case in ONE}
    assert {baseline(case) for case in TWO + FOUR} <= plain
    for cases in LAUNCHES.values():
        assert len({case.key for case in cases}) == len(cases)


@pytest.mark.parametrize(("size", "case"), VARIANTS)
def test_same_trajectory(world: World, size: int, case: Case) -> None:
    expected, found = world(1)[baseline(case)], world(size)[case.key]
    for step in range(STEPS):
        one, other = expected["per_pair"][step], found["per_pair"][step]
        assert other["indices"] == one["indices"]
        for name in one:
            # Log-probs are sums near -70; a pair's loss can be a square close to 0.
            tolerance = 1e-4 if name.startswith(("loss", "gdpo/")) else 1e-5
            assert other[name] == pytest.approx(one[name], rel=tolerance, abs=2e-4), name
        for name in ("loss", "grad_norm"):
            found_value, expected_value = (x["entries"][step][name] for x in (found, expected))
            assert found_value == pytest.approx(expected_value, rel=1e-5), f"{name}, step {step}"
        for name in ("learning_rate", "consumed_pairs", "epoch", "num_tokens"):
            assert found["entries"][step][name] == expected["entries"][step][name]
    assert found["queries"] == expected["queries"]


@pytest.mark.parametrize(("size", "case"), VARIANTS)
def test_same_validation_after_training(world: World, size: int, case: Case) -> None:
    # 12 pairs in batches of 8: the second is half sentinels.
    expected, found = world(1)[baseline(case)], world(size)[case.key]
    assert found["validation"].keys() == expected["validation"].keys()
    for name, value in expected["validation"].items():
        assert found["validation"][name] == pytest.approx(value, rel=2e-5, abs=1e-4), name


@pytest.mark.parametrize("name", ["resident", "swap", "recompute selective", "recompute full"])
def test_bit_equal_where_the_arithmetic_is_the_same(world: World, name: str) -> None:
    results = world(1)
    one, other = results["gdpo_db/tied/plain"], results[f"gdpo_db/tied/{name}"]
    assert other["entries"] == one["entries"]
    assert other["per_pair"] == one["per_pair"]


@pytest.mark.parametrize("name", ["adapter off", "resident", "swap", "recompute selective"])
def test_bit_equal_with_adapters(world: World, name: str) -> None:
    """A reference with the adapters off is the base, to the bit."""
    results, kind = world(1), "gdpo_db/tied with adapters"
    one, other = results[f"{kind}/plain"], results[f"{kind}/{name}"]
    assert other["entries"] == one["entries"]
    assert other["per_pair"] == one["per_pair"]


@pytest.mark.parametrize("objective", VARIED)
def test_weights_of_one_are_none(world: World, objective: str) -> None:
    """And other weights are others: the loss is the sum of weight times loss, by all pairs."""
    one, ones, weighted = (
        world(1)[Case("plain", objective, data=data).key]
        for data in ("pairs", "weights of one", "weighted")
    )
    assert ones["entries"] == one["entries"] and ones["per_pair"] == one["per_pair"]
    assert weighted["entries"][0]["loss"] != one["entries"][0]["loss"]


def _but(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


@pytest.mark.parametrize("objective", ONE_BY_ONE)
def test_rows_of_pairs_are_the_pairs(world: World, objective: str) -> None:
    pairs, rows = (
        world(1)[Case("plain", objective, data=data).key] for data in ("pairs", "rows of pairs")
    )
    for kind in ("entries", "per_pair"):
        # Of rows it is the share that is right, each by itself.
        assert [_but("rewards/accuracies", one) for one in rows[kind]] == [
            _but("rewards/accuracies", one) for one in pairs[kind]
        ]


@pytest.mark.parametrize("case", [c for c in ONE if c.name == "plain"], ids=lambda c: c.key)
def test_the_baseline_is_worth_comparing_with(world: World, case: Case) -> None:
    """Losses move from step to step and differ from pair to pair, so that errors would show."""
    result = world(1)[case.key]
    losses = [entry["loss"] for entry in result["entries"]]
    assert all(abs(a - b) > 0.02 * abs(a) for a, b in itertools.pairwise(losses))
    assert len({round(loss, 3) for loss in result["per_pair"][0]["loss"]}) == 8
    assert all(entry["grad_norm"] > 1.0 for entry in result["entries"]), "nothing was clipped"


@pytest.mark.parametrize(
    ("size", "key", "loss"),
    [
        (1, "dpo/tied/gate", 0.6931472),
        # (alpha * rejected_log_reward)^2 = 64 but for the one response of 8 that was cut.
        (1, "gdpo_tb/tied/gate", 56.0),
        (2, "gdpo_tb/tied/PP2 gate", 56.0),
    ],
)
def test_first_loss_of_a_policy_that_equals_its_reference(
    world: World, size: int, key: str, loss: float
) -> None:
    result = world(size)[key]
    assert result["entries"][0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["entries"][0]["grad_norm"] > 1.0


def test_results_are_json_without_surprises(world: World) -> None:
    json.dumps(world(1), allow_nan=False)  # neither NaN nor Infinity
