"""Domination, ties, degenerate points and lengths, worked by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from nemo_gdpo.evaluation.report.frontier import (
    Frontier,
    by_run,
    dominates,
    frontier,
    frontiers,
    write_frontiers,
)
from nemo_gdpo.evaluation.results import (
    Flag,
    Headline,
    Interval,
    MetricInfo,
    Point,
    Results,
    Run,
)
from nemo_gdpo.generation.types import SamplingPoint
from tests.evaluation.made_up_results import film_results

METRICS = {
    "variety": MetricInfo("diversity", "higher", "", ""),
    "reward": MetricInfo("quality", "higher", "", ""),
    "kl": MetricInfo("divergence", "lower", "nats", ""),
    "words": MetricInfo("length", "none", "words", ""),
}


def results(
    points: dict[str, tuple[float, float]],
    *,
    x: str = "variety",
    half: float = 0.0,
    words: dict[str, float] | None = None,
    degenerate: tuple[str, ...] = (),
) -> Results:
    """One run a point: (x, reward)."""
    runs = []
    for name, (a, b) in points.items():
        length = (words or {}).get(name, 10.0)
        values = {x: a, "reward": b, "words": length}
        metrics = {key: Interval(v, v - half, v + half, 5) for key, v in values.items()}
        flags = [Flag("repetitive", "it is")] if name in degenerate else []
        point = Point(SamplingPoint(1.0, 1.0, 0.0, 0), 5, 4, metrics, {}, {}, flags)
        runs.append(Run(name, f"runs/{name}", "0" * 64, {}, [f"p{n}" for n in range(5)], [point]))
    return Results({}, {}, METRICS, Headline("variety", "reward", "kl"), runs)


def on_front(found: Frontier) -> list[str]:
    return [point.run for point in found.front()]


def test_domination_needs_one_strict_gain_and_no_loss() -> None:
    both = ("higher", "higher")
    assert dominates((2.0, 2.0), (1.0, 1.0), both)
    assert dominates((2.0, 1.0), (1.0, 1.0), both)
    assert not dominates((1.0, 1.0), (1.0, 1.0), both)
    assert not dominates((2.0, 0.9), (1.0, 1.0), both)
    # Less of the first is better here.
    assert dominates((0.5, 1.0), (1.0, 1.0), ("lower", "higher"))
    assert not dominates((1.5, 2.0), (1.0, 1.0), ("lower", "higher"))


def test_front_of_five_points() -> None:
    # d lies under b; e has b's reward and less variety; f equals c and stays with it.
    points = {"a": (1.0, 9.0), "b": (4.0, 6.0), "c": (7.0, 2.0), "d": (3.0, 5.0), "e": (2.0, 6.0)}
    found = frontier(results(points | {"f": (7.0, 2.0)}), "n", "t", "variety", "reward")
    assert on_front(found) == ["a", "b", "c", "f"]
    above = {point.run: point.dominated_by for point in found.points}
    assert above["d"] == ("b T=1",)
    assert above["e"] == ("b T=1",)
    assert above["c"] == above["f"] == ()


def test_front_where_less_is_better() -> None:
    points = {"near": (0.1, 1.0), "far": (0.9, 3.0), "wasteful": (0.9, 2.0), "free": (0.0, 0.0)}
    found = frontier(results(points, x="kl"), "n", "t", "kl", "reward")
    # From the worst divergence to the best.
    assert on_front(found) == ["far", "near", "free"]


def test_degenerate_point_is_left_out_of_the_front() -> None:
    points = {"sound": (1.0, 1.0), "noise": (9.0, 9.0)}
    found = frontier(results(points, degenerate=("noise",)), "n", "t", "variety", "reward")
    assert on_front(found) == ["sound"]
    noise = found.points[1]
    assert noise.flags == ("repetitive",) and not noise.on_front and noise.dominated_by == ()
    assert any("degenerate: noise (T=1)" in caveat for caveat in found.caveats)


def test_clear_domination_takes_the_intervals() -> None:
    points = {"good": (2.0, 2.0), "near": (1.5, 1.5), "far": (0.5, 0.5)}
    found = frontier(results(points, half=0.4), "n", "t", "variety", "reward")
    clear = {point.run: point.clearly_dominated_by for point in found.points}
    # good begins at 1.6; near ends at 1.9, far at 0.9.
    assert clear == {"good": (), "near": (), "far": ("good T=1", "near T=1")}
    assert found.points[1].dominated_by == ("good T=1",)


def test_lengths_beyond_a_fifth_of_the_median_are_named() -> None:
    points = dict.fromkeys("abc", (1.0, 1.0))
    words = {"a": 10.0, "b": 12.0, "c": 12.1}
    found = frontier(results(points, words=words), "n", "t", "variety", "reward")
    # The median is 12: 10 is 2.0 away, and 2.4 are allowed.
    assert [p.length_matched for p in found.points] == [True, True, True]
    words["a"] = 9.5
    found = frontier(results(points, words=words), "n", "t", "variety", "reward")
    assert [p.length_matched for p in found.points] == [False, True, True]
    (caveat,) = found.caveats
    assert "from 9.5 to 12.1" in caveat and "a (T=1)" in caveat


def test_points_without_a_value_are_left_out_and_named() -> None:
    both = frontiers(film_results())
    assert [one.name for one in both] == ["quality_diversity", "reward_divergence"]
    assert both[0].left_out == ()
    assert both[1].left_out == ("base T=0.7", "base T=1", "base T=1.3")
    assert "base T=0.7" in both[1].caveats[-1]


def test_by_run_groups() -> None:
    points = frontiers(film_results())[0].points
    assert by_run(points[:4]) == "base (T=0.7, T=1, T=1.3), dpo (T=0.7)"


def test_no_quality_no_frontier_and_undirected_metric_is_refused() -> None:
    plain = film_results()
    without = dataclasses.replace(plain, headline=Headline("semantic_diversity", None, None))
    assert frontiers(without) == ()
    with pytest.raises(ValueError, match="neither direction is better"):
        frontier(plain, "n", "t", "mean_words", "sentiment")
    with pytest.raises(ValueError, match="do not have that metric"):
        frontier(plain, "n", "t", "elegance", "sentiment")


def test_file_has_every_number(tmp_path: Path) -> None:
    found = frontiers(film_results())
    plain = json.loads(write_frontiers(found, tmp_path).read_text())
    first = plain["frontiers"][0]["points"][3]
    assert first["run"] == "dpo"
    assert first["x"] == {"mean": 0.62, "low": 0.59, "high": 0.65, "n": 3}
    assert first["y"]["mean"] == 0.49
    assert first["on_front"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["frontier.json"]
