"""ADPO's query count over data-parallel ranks that ask for unequal numbers of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nemo_gdpo.training.queries import QueryCount
from tests.parallel.meshes import LAUNCHES
from tests.parallel.settings import BATCH, OBJECTIVES, PAIRS

pytestmark = pytest.mark.parallel

World = Callable[[int], dict[str, Any]]

CASES = [
    pytest.param(size, case.key, id=f"{size} ranks-{case.key}")
    for size, cases in LAUNCHES.items()
    for case in cases
    if case.objective == "adpo"
]


def asked_by_rank(result: dict[str, Any]) -> list[list[int]]:
    """Labels asked for by each data-parallel rank, in each step."""
    micro, ranks = result["micro_batch_size"], result["data_size"]
    counts = []
    for values in result["per_pair"]:
        of_rank = [0] * ranks
        for slot, queried in enumerate(values["queried"]):
            of_rank[slot // micro % ranks] += int(queried)
        counts.append(of_rank)
    return counts


@pytest.mark.parametrize(("size", "key"), CASES)
def test_total_is_the_number_of_different_pairs_asked_about(
    world: World, size: int, key: str
) -> None:
    result, single = world(size)[key], world(1)[f"adpo/{key.split('/')[1]}/plain"]
    asked: set[int] = set()
    for entry, values in zip(result["entries"], result["per_pair"], strict=True):
        of_step = [i for i, q in zip(values["indices"], values["queried"], strict=True) if q]
        asked |= set(of_step)
        assert entry["adpo/queries_total"] == len(asked)
        assert entry["adpo/query_rate"] == len(of_step) / BATCH
    totals = [entry["adpo/queries_total"] for entry in result["entries"]]
    assert totals == [entry["adpo/queries_total"] for entry in single["entries"]]
    restored = QueryCount(PAIRS)
    restored.restore(result["queries"])
    assert restored.total == len(asked)


def test_queries_are_what_the_margins_say(world: World) -> None:
    gamma = OBJECTIVES["adpo"]["gamma"]
    for values in world(1)["adpo/tied/plain"]["per_pair"]:
        margins = values["rewards/margins"]
        # No pair is so close to the threshold that rounding could decide.
        assert min(abs(abs(margin) - gamma) for margin in margins) > 1e-3
        assert values["queried"] == [float(abs(margin) <= gamma) for margin in margins]


@pytest.mark.parametrize(
    ("size", "key"), [(2, "adpo/tied/DP2"), (2, "adpo/tied/DP2 micro 1"), (4, "adpo/tied/DP4")]
)
def test_ranks_really_ask_for_unequal_numbers(world: World, size: int, key: str) -> None:
    result = world(size)[key]
    assert result["data_size"] == size
    assert any(len(set(counts)) > 1 for counts in asked_by_rank(result))


def test_a_pair_is_really_asked_about_twice(world: World) -> None:
    """A pair asked about in two epochs counts once."""
    result = world(1)["adpo/tied/plain"]
    answers = sum(sum(values["queried"]) for values in result["per_pair"])
    assert 0 < result["entries"][-1]["adpo/queries_total"] < answers
