"""Records: read as tables, and refused where they would not compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.film_reviews.evidence.records import START, read_records
from nemo_gdpo.errors import UserError
from tests.examples.evidence.made_records import base, made, point, record, run, write


def test_tables_of_seeds_by_prompts(tmp_path: Path) -> None:
    records = made(
        tmp_path,
        base(1),
        base(2),
        run("dpo-b0.1", (0.4, 0.6), seed=1, family="dpo", kl=[1.0, None, 3.0, 4.0]),
        run("dpo-b0.1", (0.2, 0.7), seed=2, family="dpo"),
    )
    table = records.table("dpo-b0.1", [1, 2], (20, 1.0), "reward")
    assert table.tolist() == [[0.38, 0.39, 0.41, 0.42], [0.18, 0.19, 0.21, 0.22]]
    kl = records.table("dpo-b0.1", [1, 2], (20, 1.0), "kl")
    assert np.isnan(kl[0]).tolist() == [False, True, False, False]
    assert np.isnan(kl[1]).all()
    # Against itself the untouched model has no divergence and no change; its diversity is its own.
    assert records.table("base", [1], START, "kl").tolist() == [[0.0] * 4]
    assert records.table("base", [1], START, "matched_distinct_2").tolist() == [[0.0] * 4]
    assert np.isnan(records.table("base", [1], START, "coverage")).all()
    assert records.table("base", [1], START, "semantic_diversity").mean() == pytest.approx(0.8)
    assert np.isnan(records.table("base", [1], (0, 0.5), "matched_distinct_2")).all()


def test_families_seeds_and_points(tmp_path: Path) -> None:
    records = made(
        tmp_path,
        base(1),
        base(2),
        run("dpo-b0.1", (0.1, 0.7), (0.2, 0.6), seed=1, family="dpo"),
        run("dpo-b0.1", (0.1, 0.7), seed=2, family="dpo"),
        run("dpo-b0.3", (0.1, 0.7), seed=2, family="dpo"),
    )
    assert records.members("dpo") == ["dpo-b0.1", "dpo-b0.3"]
    assert records.members("dpo-b0.3") == ["dpo-b0.3"]
    assert records.members("odpo") == [] and not records.has("odpo")
    assert records.seeds(["base", "dpo-b0.1", "dpo-b0.3"]) == [2]
    assert records.missing_seeds(["base", "dpo-b0.3"]) == {"dpo-b0.3": [1]}
    # Only what all of its seeds have.
    assert records.last("dpo-b0.1") == (20, 1.0)
    assert records.last("dpo-b0.1", [1]) == (40, 1.0)
    assert records.points("base") == [(0, 0.5), (0, 1.0)]
    assert records.labels("dpo-b0.1") == 100


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schema": 2}, "not a record of schema 1"),
        ({"prompts": ["b", "a", "c", "d"]}, "other prompts than base--seed-1.json"),
        ({"identity": {"settings": {"updates": 41}}}, "other settings than base--seed-1.json"),
        ({"model": "f00"}, "other model than base--seed-1.json"),
        ({"points": [point(20, 0, 0), point(20, 1, 1)]}, "update 20 at temperature 1 is there"),
        ({"points": [point(20, 0, 0, kl=[1.0])]}, "kl: 1 values for 4 prompts"),
        ({"points": [point(20, 0, 0, kl=[1.0, 2.0, 3.0, 1e999])]}, "kl: holds an infinite value"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    write(tmp_path, base(), record("dpo", [point(20, 0.1, 0.7)]) | change)
    with pytest.raises(UserError, match=line):
        read_records(tmp_path)


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no record"):
        read_records(tmp_path)
    write(tmp_path, run("dpo", (0.1, 0.7)))
    with pytest.raises(UserError, match="no record of the arm base"):
        read_records(tmp_path)
    (tmp_path / "dpo--seed-1.json").rename(tmp_path / "ipo--seed-1.json")
    with pytest.raises(UserError, match=r"is the record of dpo--seed-1\.json"):
        read_records(tmp_path)
    plain = base()
    del plain["labels"], plain["day"]
    (tmp_path / "ipo--seed-1.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="has no day, labels"):
        read_records(tmp_path)
    (tmp_path / "ipo--seed-1.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_records(tmp_path)
