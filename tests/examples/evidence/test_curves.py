"""Bootstrap over seeds and prompts, and differences at matched reward, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.film_reviews.evidence.bootstrap import Draws, Interval, interval
from examples.film_reviews.evidence.curves import Comparison, Curve, Level, Side, _at_level
from examples.film_reviews.evidence.records import Records
from tests.examples.evidence.made_records import base, made, point, record, run

SHARES = (0.5, 0.95)


def matched(
    records: Records, first: str, second: str, *, x: str = "reward", seeds: tuple[int, ...] = (1,)
) -> list[Level]:
    return Comparison(records, 200).matched(
        Side(first),
        Side(second),
        seeds,
        x=x,
        y="semantic_diversity" if x == "reward" else "reward",
        shares=SHARES,
        least_gain=0.05,
    )


def means(levels: list[Level]) -> list[float]:
    return [level.difference.mean for level in levels if level.difference is not None]


def test_row_0_is_the_data_and_a_missing_value_is_left_out() -> None:
    draws = Draws(2, 3, 50)
    found = draws.means(np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]]))
    assert found.shape == (51,)
    assert found[0] == pytest.approx(15 / 5)
    assert np.isnan(Draws(1, 1, 3).means(np.array([[np.nan]]))).all()


def test_draws_weigh_seeds_and_prompts() -> None:
    # A value that is the seed's alone: the mean of a draw is the share of seed 1 in it, 0, 1/2 or
    # 1 with probabilities 1/4, 1/2, 1/4, whatever prompts are drawn.
    draws = Draws(2, 5, 4000)
    found = draws.means(np.array([[0.0] * 5, [1.0] * 5]))[1:]
    assert set(found.tolist()) == {0.0, 0.5, 1.0}
    assert (found == 0.5).mean() == pytest.approx(0.5, abs=0.03)
    # A value that is the prompt's alone has the spread of a mean of 5: sqrt(0.4 * 0.6 / 5).
    found = draws.means(np.array([[1.0, 1.0, 0.0, 0.0, 0.0]] * 2))[1:]
    assert found.std() == pytest.approx(np.sqrt(0.4 * 0.6 / 5), rel=0.05)


def test_an_interval_holds_the_middle_95_percent() -> None:
    value = interval(np.array([7.0, *range(101)]))
    assert (value.mean, value.low, value.high) == pytest.approx((7.0, 2.5, 97.5))
    # Draws without a value are left out; a figure without a value is refused.
    assert interval(np.array([7.0, *range(101), np.nan])) == value
    with pytest.raises(ValueError, match="no value"):
        interval(np.array([np.nan, 1.0]))
    assert Interval(0.5, -0.25, 1.0).change() == "+0.500 [-0.250, +1.000]"
    assert Interval(-0.0, -1e-9, 0.0).plain() == "0.000 [0.000, 0.000]"
    assert Interval(123.456, 100.0, 140.0).plain() == "123.5 [100.0, 140.0]"


def test_the_first_crossing_counts() -> None:
    # Up to 0.4, down to 0.2, up again: 0.3 is first met half way between the second and the third.
    x = np.array([[0.0, 0.2, 0.4, 0.2, 0.6]])
    y = np.array([[1.0, 0.8, 0.6, 0.1, 0.0]])
    assert Curve(x, y).at(0.3) == pytest.approx([0.7])
    assert Curve(x, y).at(0.2) == pytest.approx([0.8])
    assert Curve(x, y).at(0.0) == pytest.approx([1.0])
    assert np.isnan(Curve(x, y).at(0.61)).all() and np.isnan(Curve(x, y).at(-0.1)).all()
    assert Curve(x, y).reach == 0.6
    # Each draw has its own curve: the second one never gets that far.
    two = Curve(np.array([[0.0, 0.4], [0.0, 0.2]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert two.at(0.3)[0] == pytest.approx(0.25) and np.isnan(two.at(0.3)[1])


def test_matched_reward_by_hand(tmp_path: Path) -> None:
    """DPO falls from 0.8 to 0.4 while its reward rises from 0 to 0.4: 0.8 - r. GDPO reaches 0.2
    with 0.7: 0.8 - r / 2. Both reach 0.2. At half of it, 0.1: 0.75 - 0.70; at 0.19: 0.705 - 0.61.
    """
    records = made(tmp_path, base(), run("dpo", (0.2, 0.6), (0.4, 0.4)), run("gdpo", (0.2, 0.7)))
    levels = matched(records, "gdpo", "dpo")
    assert [level.where for level in levels] == ["at reward 0.100", "at reward 0.190"]
    assert means(levels) == pytest.approx([0.05, 0.095])
    assert means(matched(records, "dpo", "gdpo")) == pytest.approx([-0.05, -0.095])
    # A run beside itself: no difference in any draw.
    same = matched(records, "dpo", "dpo")[0].difference
    assert same == Interval(0.0, 0.0, 0.0)


def test_a_family_is_the_mean_of_those_that_reach_the_level(tmp_path: Path) -> None:
    """Of two members one stops at 0.1. At 0.5 x 0.2 both count: DPO has 0.70 there, they 0.75 and
    0.79. At 0.19 only one of them does."""
    records = made(
        tmp_path,
        base(),
        run("dpo", (0.2, 0.6)),
        run("g-1", (0.2, 0.7), family="g"),
        run("g-2", (0.12, 0.788), family="g"),
    )
    levels = matched(records, "g", "dpo")
    assert means(levels) == pytest.approx([(0.05 + 0.09) / 2, 0.705 - 0.61])
    assert [level.members[0] for level in levels] == [("g-1", "g-2"), ("g-1",)]


def test_too_little_gain_is_not_asked(tmp_path: Path) -> None:
    records = made(tmp_path, base(), run("dpo", (0.2, 0.6)), run("gdpo", (0.04, 0.7)))
    (level,) = matched(records, "gdpo", "dpo")
    assert level.difference is None
    assert level.why == "too little reward that both reach: +0.040"
    (level,) = matched(records, "gdpo", "dpo", x="kl")
    assert level.why == "KL and reward of gdpo were not measured along its run"


def test_a_level_that_many_draws_miss_is_not_asked(tmp_path: Path) -> None:
    """One seed has a reward of 0.6, three have none: 0.143 in the mean, and none at all in the
    (3/4)^4 = 32 % of the draws that miss the one."""
    good, bad = (0.6, 0.5), (0.0, 0.8)
    records = made(
        tmp_path,
        *[base(seed) for seed in (1, 2, 3, 4)],
        *[run("dpo", good, seed=seed) for seed in (1, 2, 3, 4)],
        *[run("gdpo", good if seed == 1 else bad, seed=seed) for seed in (1, 2, 3, 4)],
    )
    levels = matched(records, "gdpo", "dpo", seeds=(1, 2, 3, 4))
    assert [level.difference for level in levels] == [None, None]
    assert levels[0].why.endswith("in too few of the draws, by gdpo")


def test_equal_divergence(tmp_path: Path) -> None:
    # At 1 nat DPO has half of its 0.4, ODPO 0.3; the untouched model's divergence is 0 by itself.
    records = made(
        tmp_path,
        base(),
        run("dpo", (0.4, 0.5), kl=[2.0] * 4),
        run("odpo", (0.6, 0.5), kl=[2.0] * 4),
    )
    assert means(matched(records, "odpo", "dpo", x="kl")) == pytest.approx([0.1, 0.19])


def test_over_temperatures(tmp_path: Path) -> None:
    """Cooled from 1 to 0.5 the untouched model gets 0.2 with 0.6. Hotter is off its curve."""
    hot = point(0, 0.9, 0.9, 1.5)
    plain = base()
    plain["points"].append(hot)
    trained = record("dpo", [point(20, 0.3, 0.65), point(20, 0.2, 0.7, 1.25), point(20, 0, 0, 0.5)])
    records = made(tmp_path, plain, trained)
    c = Comparison(records, 100)
    assert c.path("base", [1], sweep=True) == [("base", (0, 1.0)), ("base", (0, 0.5))]
    assert c.path("dpo", [1], sweep=True) == [("dpo", (20, 1.0)), ("dpo", (20, 1.25))]
    assert c.path("dpo", [1]) == [("base", (0, 1.0)), ("dpo", (20, 1.0))]
    (level,) = c.matched(
        Side("dpo"),
        Side("base", sweep=True),
        [1],
        x="reward",
        y="semantic_diversity",
        shares=[0.5],
        least_gain=0.05,
    )
    # At 0.1 DPO is a third of the way from 0.8 to 0.65, the cooled model half of that to 0.6.
    assert level.difference is not None and level.difference.mean == pytest.approx(0.75 - 0.7)


def test_excluded_points_are_passed_by(tmp_path: Path) -> None:
    records = made(tmp_path, base(), run("dpo", (0.2, 0.9), (0.4, 0.4)), run("gdpo", (0.4, 0.5)))
    c = Comparison(records, 100, {("dpo", (20, 1.0)): "noise"})
    assert c.path("dpo", [1]) == [("base", (0, 1.0)), ("dpo", (40, 1.0))]
    (level,) = c.matched(
        Side("gdpo"),
        Side("dpo"),
        [1],
        x="reward",
        y="semantic_diversity",
        shares=[0.5],
        least_gain=0.05,
    )
    assert level.difference is not None and level.difference.mean == pytest.approx(0.65 - 0.6)
    assert c.last("dpo", "gdpo", [1], "reward").difference == Interval(0.0, 0.0, 0.0)
    out = Comparison(records, 100, {("dpo", (40, 1.0)): "noise"}).last("dpo", "gdpo", [1], "reward")
    assert out.difference is None and out.why == "dpo takes no part: noise"


def test_hard_prompts_do_not_decide_whether_a_level_is_reached(tmp_path: Path) -> None:
    """Rewards of the prompts lie 2 apart, and every one gains 0.2. A fixed level of 0.19 above the
    mean of all would be missed by the half of the draws that have more of the hard prompts."""
    far = [-1.0, -1.0, 1.0, 1.0]
    records = made(
        tmp_path,
        base(reward=far),
        run("dpo", (0.0, 0.6), reward=[value + 0.2 for value in far]),
        run("gdpo", (0.0, 0.7), reward=[value + 0.2 for value in far]),
    )
    levels = matched(records, "gdpo", "dpo")
    assert means(levels) == pytest.approx([0.05, 0.095])
    assert [level.lost for level in levels] == [0.0, 0.0]


def test_sides_that_seldom_get_there_together_are_not_asked() -> None:
    """Each side misses a fifth of its draws, which is allowed; never the same ones: two fifths of
    the draws have no difference, which is not."""
    there, short = [0.0, 0.4], [0.0, 0.1]
    y = np.array([[1.0, 0.0]] * 10)
    first = Curve(np.array([there] * 8 + [short] * 2), y)
    second = Curve(np.array([there] + [short] * 2 + [there] * 7), y)
    level = _at_level([{"a": first}, {"b": second}], "reward", np.full(10, 0.2))
    assert level.difference is None
    assert level.why == "not reached by both in 40% of the draws"
    beside_itself = _at_level([{"a": first}, {"b": first}], "reward", np.full(10, 0.2))
    assert beside_itself.difference is not None and beside_itself.lost == 0.2
