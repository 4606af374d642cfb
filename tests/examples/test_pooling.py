"""Seeds of an arm become one run: means, missing values, intervals over both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from examples.film_reviews.experiment.pooling import draws, in_order, pool, resampled_means
from examples.film_reviews.experiment.verdict import verdicts
from nemo_gdpo.evaluation.results import Results
from tests.examples.known_results import results


def test_a_prompts_value_is_the_mean_over_seeds_that_have_one() -> None:
    one = results("dpo", [{"reward": [1.0, 2.0, None], "variety": [0.0, 0.0, 0.0]}])
    two = results("dpo", [{"reward": [3.0, None, None], "variety": [1.0, 1.0, 1.0]}])
    pooled = pool({"dpo": {1: one, 2: two}}, 500)
    point = pooled.runs[0].points[0]
    assert point.per_prompt["reward"] == [2.0, 2.0, None]
    assert point.metrics["reward"].mean == 2.0  # (1 + 2 + 3) / 3
    assert point.metrics["reward"].n == 2
    # All of a seed alike: the interval is that of drawing two seeds.
    variety = point.metrics["variety"]
    assert (variety.mean, variety.low, variety.high) == (0.5, 0.0, 1.0)
    assert point.counts == {"responses": 8}
    assert pooled.runs[0].facts["seeds"] == [1, 2]


def test_one_seed_has_the_interval_over_prompts() -> None:
    values = [0.0, 1.0] * 20
    pooled = pool({"a": {1: results("a", [{"reward": values, "variety": [1.0] * 40}])}}, 4000)
    found = pooled.runs[0].points[0].metrics["reward"]
    # A mean of 40 coins: 0.5 +- 1.96 * 0.5 / sqrt(40).
    assert found.low == pytest.approx(0.5 - 0.155, abs=0.03)
    assert found.high == pytest.approx(0.5 + 0.155, abs=0.03)


def test_flags_name_their_seed_and_arms_stand_side_by_side() -> None:
    plain = [{"reward": [1.0, 2.0], "variety": [1.0, 2.0]}]
    found = {
        "base": {1: results("base", plain)},
        "gdpo": {
            1: results("gdpo", plain, facts={"queries asked": 7}),
            2: results("gdpo", plain, flags=["noise"], facts={"queries asked": 9}),
        },
    }
    pooled = pool(found, 100)
    assert [run.name for run in pooled.runs] == ["base", "gdpo"]
    assert [f.message for f in pooled.runs[1].points[0].flags] == ["seed 2: it is noise"]
    assert pooled.runs[1].facts["queries asked"] == [7, 9]
    (sample,) = pooled.samples
    assert [response.run for response in sample.responses] == ["base", "gdpo"]
    # It is a results file like any other.
    assert Results.from_json(pooled.to_json()) == pooled


def test_means_of_draws_leave_missing_values_out() -> None:
    value_SP = np.array([[1.0, np.nan, 5.0]])
    drawn = (np.array([[0]] * 3), np.array([[0, 1, 2], [1, 1, 1], [0, 0, 1]]))
    means = resampled_means(value_SP, drawn)
    assert means[0] == 3.0 and np.isnan(means[1]) and means[2] == 1.0


def test_draws_are_the_same_each_time_and_of_the_right_shape() -> None:
    seeds_RS, prompts_RP = draws(3, 8, 50, seed=1)
    assert seeds_RS.shape == (50, 3) and prompts_RP.shape == (50, 8)
    assert seeds_RS.max() == 2 and prompts_RP.max() == 7
    again = draws(3, 8, 50, seed=1)
    assert np.array_equal(seeds_RS, again[0]) and np.array_equal(prompts_RP, again[1])


def test_other_prompts_are_refused() -> None:
    plain = {"reward": [1.0, 2.0], "variety": [1.0, 2.0]}
    more = {name: [*values, 1.0] for name, values in plain.items()}
    with pytest.raises(ValueError, match="dpo: seed 2 was asked other prompts"):
        pool({"dpo": {1: results("dpo", [plain]), 2: results("dpo", [more])}}, 100)


def test_arms_are_paired_by_prompt_and_not_by_place() -> None:
    """Two arms that differ by 0.1 at every prompt, one of them told in another order."""
    easy = [0.0, 0.5, 1.0]
    base = results("base", [{"reward": easy, "variety": easy}])
    better = [value + 0.1 for value in easy]
    dpo = results("dpo", [{"reward": better, "variety": better}])
    (run,) = dpo.runs
    (point,) = run.points
    turned = dataclasses.replace(
        dpo,
        runs=[
            dataclasses.replace(
                run,
                prompt_ids=run.prompt_ids[::-1],
                points=[
                    dataclasses.replace(
                        point, per_prompt={k: v[::-1] for k, v in point.per_prompt.items()}
                    )
                ],
            )
        ],
    )
    assert in_order(turned) == dpo == in_order(dpo)
    found = {"base": {1: base}, "dpo": {1: in_order(turned)}}
    (verdict, *_) = verdicts(found, 200)
    value = verdict.differences[0].value
    assert (value.mean, value.low, value.high) == pytest.approx((0.1, 0.1, 0.1))
    for refuse in (pool, verdicts):
        with pytest.raises(ValueError, match="dpo: seed 1 was asked other prompts"):
            refuse({"base": {1: base}, "dpo": {1: turned}}, 200)
