"""The points of a sweep, and sweeps that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.generation.sweep import sampling_points, sweep_problems
from nemo_gdpo.generation.types import SamplingPoint


def _config(*overrides: str) -> Any:
    return GENERATE.parse(compose(overrides, root=GENERATE).plain).generation


def test_a_value_alone_is_one_point() -> None:
    assert sampling_points(_config("generation.temperature=0.7")) == (SamplingPoint(0.7),)


def test_lists_multiply() -> None:
    config = _config("generation.temperature=[0.7,1]", "generation.top_p=[0.9,1.0]")
    assert sampling_points(config) == (
        SamplingPoint(0.7, 0.9),
        SamplingPoint(0.7, 1.0),
        SamplingPoint(1.0, 0.9),
        SamplingPoint(1.0, 1.0),
    )
    assert (
        len(sampling_points(_config("generation.min_p=[0,0.1]", "generation.top_k=[0,5,9]"))) == 6
    )


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["generation.temperature=[0.7,0.7]"], "generation.temperature"),
        (["generation.top_k=[5,5]"], "generation.top_k"),
        (["generation.temperature=0.001"], "generation.temperature"),
        (["generation.temperature=3.0"], "generation.temperature"),
        (["generation.temperature=[0.7,2.01]"], "generation.temperature"),
        (["generation.temperature=0", "generation.num_samples=2"], "generation.num_samples"),
        (["generation.temperature=[0,1]"], "generation.num_samples"),
        (["generation=greedy", "generation.top_p=[0.9,1.0]"], "generation.top_p"),
    ],
)
def test_refused(overrides: list[str], key: str) -> None:
    assert [problem.key for problem in sweep_problems(_config(*overrides))] == [key]


def test_the_highest_temperature_is_sampled_at() -> None:
    assert sweep_problems(_config("generation.temperature=2.0")) == []


def test_choices_are_valid() -> None:
    for choice in ("default", "greedy", "temperatures"):
        assert sweep_problems(_config(f"generation={choice}")) == []
    assert sampling_points(_config("generation=greedy"))[0].greedy
