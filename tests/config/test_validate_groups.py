"""Groups of answers: what they cannot be combined with, and sizes that would cut one in two."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.changed import found_in

GROUPS: dict[str, Any] = {
    "data__format": "groups",
    "data__group_size": 4,
    "objective": {"name": "gflownet"},
    "model__global_batch_size": 4,
    "model__micro_batch_size": 2,
}


def test_groups_of_four(base: dict[str, dict[str, Any]]) -> None:
    assert found_in(base, **GROUPS) == []


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"data__group_size": None}, "data.group_size", "how many is not said"),
        ({"objective": {"name": "dpo"}}, "data.format", "as objective=dpo wants"),
        ({"data__on_bad_pair": "drop"}, "data.on_bad_pair", "take two answers out of a group"),
        ({"data__weight_column": "w"}, "data.weight_column", "groups is no pair"),
        ({"data__margin_column": "m"}, "data.margin_column", "none is preferred"),
        ({"data__format": "trl"}, "data.group_size", "nothing reads it with data.format=trl"),
        (
            {"model__global_batch_size": 5, "model__micro_batch_size": 2},
            "model.global_batch_size",
            "5 pairs are no whole groups of 4 answers, which are 2 pairs (data.group_size)",
        ),
        ({"model__micro_batch_size": 1}, "model.micro_batch_size", "1 pairs are no whole groups"),
    ],
)
def test_refused(
    base: dict[str, dict[str, Any]], change: dict[str, Any], key: str, said: str
) -> None:
    found = [line for line in found_in(base, **{**GROUPS, **change}) if line.startswith(f"{key}: ")]
    assert any(said in line for line in found), found
