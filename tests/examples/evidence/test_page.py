"""The page: every sentence of an outcome follows from the records, few or many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.film_reviews.evidence.page import write_page
from examples.film_reviews.evidence.protocol import Protocol, read_protocol
from examples.film_reviews.evidence.records import Records
from tests.examples.evidence.made_records import base, made, record, run

SETTINGS = {"updates": 40, "writer": {"layers": 6}, "temperatures": (0.5, 1.0)}


@pytest.fixture
def protocol() -> Protocol:
    read = read_protocol()
    read.resamples = 200
    return read


def full(directory: Path, *, gdpo: float = 0.6) -> Records:
    seeds = range(1, 6)
    return made(
        directory,
        *[base(seed, coverage=[1.0] * 4) for seed in seeds],
        *[
            run(arm, (0.2, 0.6), (0.4, end), seed=seed, family=family, kl=[2.0] * 4)
            for seed in seeds
            for arm, family, end in (
                ("dpo-b0.1", "dpo", 0.4),
                ("gdpo-tb-k5", "gdpo-tb", gdpo),
                ("ipo", "ipo", 0.4),
            )
        ],
        *[run("odpo-log", (0.3, 0.6), (0.45, 0.4), seed=s, kl=[2.0] * 4) for s in seeds],
        *[
            record(f"{kind}-g0.3", run(kind, (reward, 0.5))["points"], seed, family=kind, labels=50)
            for seed in seeds
            for kind, reward in (("adpo", 0.4), ("random", 0.3))
        ],
    )


def written(records: Records, protocol: Protocol, directory: Path) -> str:
    page = write_page(
        records,
        protocol,
        docs_dir=directory / "docs",
        results_dir=directory / "results",
        notes=["2 cores of a test."],
        settings=SETTINGS,
        protocol_stamp="committed 2026-11-27",
    )
    assert page == directory / "docs" / "evidence.md"
    return page.read_text()


@pytest.mark.slow
def test_a_page_of_many_arms(tmp_path: Path, protocol: Protocol) -> None:
    """At reward 0.38 DPO has 0.6 - 0.9 * 0.2 = 0.42, GDPO 0.6: more by 0.18, and as much as DPO at
    0.2."""
    text = written(full(tmp_path / "records"), protocol, tmp_path)
    assert "**It depends on what you need; these held:**" in text
    assert "**Held**: Where labels are dear choose ADPO" in text
    assert "(after the last update: +0.100 [+0.100, +0.100]; 5 seeds)" in text
    assert "at reward 0.380 held: +0.180" in text
    assert "- semantic diversity: -0.400 [-0.400, -0.400], 5 seeds" in text
    assert "**Passed.**" in text
    assert "committed 2026-11-27; SHA-256 `" + protocol.sha256[:16] in text
    assert "no record of spl" in text and "not run: `gdpo-subtb`, `gdpo-db`," in text
    assert "- `gdpo-no-eos` has no arm: without the probability of ending" in text
    assert "- Toxicity: not measured." in text
    assert "| `writer.layers` | 6 |" in text and "- 2 cores of a test." in text
    row = next(line for line in text.splitlines() if line.startswith("| `base` |"))
    assert row.startswith("| `base` | 5 | – | 0.000 [-0.0") and row.endswith("] | – | – | – |")
    images = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    assert images == {
        f"evidence{name}.png" for name in ("", "_others", "_frontier", "_labels", "_ablations")
    }
    for name in images:
        assert f"](images/{name})" in text
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    outcomes = {one["id"]: one["outcome"] for one in results["claims"]}
    assert outcomes["adpo-g0.3"] == "held" and outcomes["spl"] == "not run"
    assert outcomes["gdpo-coverage"] == "could not be asked"
    assert results["arms"]["adpo-g0.3"]["labels"] == 50
    assert results["positive_control"]["passed"] is True


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(tmp_path: Path, protocol: Protocol) -> None:
    records = full(tmp_path / "records")
    written(records, protocol, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    stale = tmp_path / "docs" / "images" / "evidence_coverage.png"
    stale.write_bytes(b"of other records")
    written(records, protocol, tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_one_seed_of_three_arms(tmp_path: Path, protocol: Protocol) -> None:
    records = made(
        tmp_path / "records",
        base(),
        run("dpo-b0.1", (0.4, 0.4), family="dpo"),
        run("gdpo-tb-k5", (0.4, 0.4), family="gdpo-tb"),
    )
    text = written(records, protocol, tmp_path)
    assert "**Start with DPO.**" in text
    assert "**Refuted**: GDPO with tb is no reason to leave DPO" in text
    assert "one seed: the interval covers the choice of prompts only" in text
    assert "**Not measured**, because an arm was not run: ODPO" in text


def test_without_a_control_nothing_is_said_of_diversity(tmp_path: Path, protocol: Protocol) -> None:
    records = made(tmp_path / "records", base(), run("gdpo-tb-k5", (0.4, 0.6), family="gdpo-tb"))
    text = written(records, protocol, tmp_path)
    assert "**These runs do not decide which objective to choose.**" in text
    assert "- could not be evaluated: dpo-b0.1 was not run" in text
    assert "**Failed**: nothing is claimed of diversity." in text
    assert "**Held**" not in text.split("## The positive control")[0]


def test_a_failed_control_is_said_in_the_answer(tmp_path: Path, protocol: Protocol) -> None:
    records = made(
        tmp_path / "records",
        base(),
        run("dpo-b0.1", (0.4, 0.79), family="dpo"),
        run("gdpo-tb-k5", (0.4, 0.9), family="gdpo-tb"),
    )
    answer = written(records, protocol, tmp_path).split("## The positive control")[0]
    assert "- **Not claimed**, because the positive control failed: GDPO (tb) has more" in answer
    assert "**Held**" not in answer


def test_the_untouched_model_alone(tmp_path: Path, protocol: Protocol) -> None:
    text = written(made(tmp_path / "records", base()), protocol, tmp_path)
    assert "computed from 1 run of 1 arm, over 4 prompts." in text
    assert "- **Not measured**, because an arm was not run: GDPO (tb) has more" in text
