"""Outcomes follow from intervals, whichever they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from examples.film_reviews.evidence.answer import differences, short_answer
from examples.film_reviews.evidence.bootstrap import Interval
from examples.film_reviews.evidence.claims import (
    CONTROL_FAILED,
    HELD,
    MIXED,
    NOT_RUN,
    REFUTED,
    UNASKED,
    UNDECIDED,
    Judged,
    Verdict,
    judge,
    outcome_of,
)
from examples.film_reviews.evidence.curves import Level
from examples.film_reviews.evidence.protocol import Claim, Protocol, read_protocol
from tests.examples.evidence.made_records import base, made, point, record, run

DPO = ((0.2, 0.6), (0.4, 0.4))
Ends = tuple[tuple[float, float], ...]


def claim(kind: str = "matched", **more: Any) -> Claim:
    values: dict[str, Any] = {
        "id": "it",
        "text": "GDPO is better",
        "group": "diversity",
        "kind": kind,
        "first": "gdpo",
        "second": "dpo-b0.1",
        "y": "semantic_diversity",
        "margin": 0.02,
    }
    return Claim(**values | more)


def protocol(*claims: Claim) -> Protocol:
    return dataclasses.replace(read_protocol(), resamples=300, claims=list(claims) or [claim()])


def judged(tmp_path: Path, gdpo: Ends, *claims: Claim, dpo: Ends = DPO) -> Judged:
    records = made(
        tmp_path,
        *[base(seed) for seed in range(1, 6)],
        *[run("dpo-b0.1", *dpo, seed=seed, family="dpo") for seed in range(1, 6)],
        *[run("gdpo", *gdpo, seed=seed) for seed in range(1, 6)],
    )
    return judge(records, protocol(*claims))


@pytest.mark.parametrize(
    ("low", "high", "superior", "no_worse"),
    [
        (0.001, 0.1, HELD, HELD),
        (0.001, 0.01, HELD, HELD),  # and refuted as well: what holds is named, and its size
        (-0.01, 0.1, UNDECIDED, HELD),
        (-0.01, 0.019, REFUTED, HELD),
        (-0.021, 0.03, UNDECIDED, UNDECIDED),
        (-0.1, -0.019, REFUTED, UNDECIDED),
        (-0.1, -0.021, REFUTED, REFUTED),
        (0.0, 0.02, UNDECIDED, HELD),
        (-0.02, -0.02, REFUTED, UNDECIDED),
    ],
)
def test_outcomes(low: float, high: float, superior: str, no_worse: str) -> None:
    value = Interval((low + high) / 2, low, high)
    assert outcome_of(claim(), value) == superior
    assert outcome_of(claim("last"), value) == superior
    assert outcome_of(claim("no_worse"), value) == no_worse


def test_held(tmp_path: Path) -> None:
    """The control: DPO falls from 0.8 to 0.4. GDPO falls half as fast: 0.1 more at reward 0.2."""
    found = judged(tmp_path, ((0.4, 0.6),))
    assert found.control.passed and found.control.seeds == (1, 2, 3, 4, 5)
    fall = found.control.falls["semantic_diversity"].difference
    assert fall is not None and fall.mean == pytest.approx(-0.4)
    verdict = found.verdict("it")
    assert verdict.outcome == HELD and verdict.notes == ()
    assert [level.difference.mean for level in verdict.levels if level.difference] == (
        pytest.approx([0.1, 0.19])
    )


def test_held_by_less_than_matters(tmp_path: Path) -> None:
    found = judged(tmp_path, ((0.4, 0.41),)).verdict("it")
    assert found.outcome == HELD and found.notes == ("by less than the 0.02 that would matter",)


def test_the_opposite(tmp_path: Path) -> None:
    found = judged(tmp_path, ((0.4, 0.2),)).verdict("it")
    assert found.outcome == REFUTED
    assert found.notes == ("the opposite: the interval lies below 0",)


def test_mixed(tmp_path: Path) -> None:
    # More diverse at reward 0.2, less at 0.38.
    found = judged(tmp_path, ((0.2, 0.7), (0.4, 0.2))).verdict("it")
    assert found.outcome == MIXED
    first, second = differences(found).split("; ")
    assert first.startswith("at reward 0.200 held: +0.100 [")
    assert second.startswith("at reward 0.380 refuted: -0.170 [")


def test_mixed_where_a_level_is_out_of_reach(tmp_path: Path) -> None:
    near, far = Level("at reward 0.2", Interval(0.0, -0.01, 0.01)), Level("at reward 0.4", None)
    verdict = Verdict(claim(), MIXED, (near, far))
    assert differences(verdict) == (
        "at reward 0.2 refuted: +0.000 [-0.010, +0.010]; at reward 0.4 could not be asked"
    )


def test_a_main_claim_that_could_not_be_asked_says_why(tmp_path: Path) -> None:
    main = claim(id="kl", x="kl", y="reward", main=True)
    found = judged(tmp_path, ((0.37, 0.6),), main)
    *_, line = short_answer(made(tmp_path / "more", base(1)), found)
    assert line.startswith(
        "- **Could not be asked**: GDPO is better (anywhere: KL and reward of gdpo were not"
    )


def test_another_kind_of_claim(tmp_path: Path) -> None:
    claims = [
        claim("last", id="reward", y="reward"),
        claim("no_worse", id="no-worse", y="reward"),
        claim("no_worse", id="a-little", y="reward", margin=0.05),
        claim(id="kl", x="kl", y="reward"),
        claim(id="gone", first="spl"),
    ]
    found = judged(tmp_path, ((0.37, 0.6),), *claims)
    assert found.verdict("reward").outcome == REFUTED
    assert found.verdict("no-worse").outcome == REFUTED
    assert found.verdict("a-little").outcome == HELD
    assert found.verdict("kl").outcome == UNASKED
    assert found.verdict("kl").notes[0].startswith("anywhere: KL and reward of gdpo were not")
    assert found.verdict("gone").outcome == NOT_RUN
    assert found.verdict("gone").notes == ("no record of spl",)


@pytest.mark.parametrize("end", [(0.4, 0.76), (0.4, 0.8)])
def test_nothing_is_claimed_of_diversity_when_the_control_fails(
    tmp_path: Path, end: tuple[float, float]
) -> None:
    found = judged(tmp_path, ((0.4, 0.9),), claim(), claim("last", id="r", y="reward"), dpo=(end,))
    assert not found.control.passed
    assert found.verdict("it").outcome == CONTROL_FAILED
    assert found.verdict("r").outcome == REFUTED  # of reward: not guarded


def test_one_metric_of_the_control_is_enough(tmp_path: Path) -> None:
    two = {"distinct_2": [0.9] * 4}
    records = made(
        tmp_path,
        base(**two),
        run("dpo-b0.1", (0.4, 0.8), family="dpo", distinct_2=[0.85, 0.85, 0.84, 0.84]),
    )
    assert judge(records, protocol()).control.passed


def test_a_control_that_was_not_run(tmp_path: Path) -> None:
    records = made(tmp_path, base(), run("ipo", (0.4, 0.4)))
    control = judge(records, protocol()).control
    assert not control.passed and control.why == "dpo-b0.1 was not run"


def test_noise_takes_no_part(tmp_path: Path) -> None:
    noise = {"valid": [0.9, 0.7, 0.7, 0.7]}
    salad = {"perplexity": [301.0] * 4}
    records = made(
        tmp_path,
        base(),
        run("dpo-b0.1", *DPO, family="dpo"),
        record("gdpo", [point(20, 0.4, 0.9, **noise), point(40, 0.4, 0.6)]),
        record("ipo", [point(20, 0.4, 0.9, **salad), point(40, 0.4, 0.6, valid=[0.8] * 4)]),
    )
    found = judge(records, protocol())
    assert found.excluded == {
        ("gdpo", (20, 1.0)): "75% of the responses are valid",
        ("ipo", (20, 1.0)): "perplexity 3.0 times the untouched model's",
    }
    (first, _) = found.verdict("it").levels
    assert first.difference is not None and first.difference.mean == pytest.approx(0.7 - 0.6)


def test_seeds_that_an_arm_lacks_are_left_out_and_named(tmp_path: Path) -> None:
    records = made(
        tmp_path,
        base(1),
        base(2),
        run("dpo-b0.1", *DPO, seed=1, family="dpo"),
        run("dpo-b0.1", *DPO, seed=2, family="dpo"),
        run("gdpo", (0.4, 0.6), seed=2),
        run("gdpo", (0.4, 0.6), seed=3),
    )
    means = dict.fromkeys((HELD, REFUTED, UNDECIDED), "so")
    found = judge(records, protocol(claim(main=True, means=means))).verdict("it")
    assert found.outcome == HELD and found.seeds == (2,)
    assert found.notes == (
        "1 of at least 5 seeds",
        "one seed: the interval covers the choice of prompts only",
        "base lacks seed 3, left out of the comparison",
        "gdpo lacks seed 1, left out of the comparison",
        "dpo-b0.1 lacks seed 3, left out of the comparison",
    )


def test_a_family_says_how_many_of_its_arms_stand_for_it(tmp_path: Path) -> None:
    records = made(
        tmp_path,
        base(),
        run("dpo-b0.1", *DPO, family="dpo"),
        run("dpo-b0.3", (0.1, 0.7), family="dpo"),
        run("gdpo", (0.4, 0.6)),
    )
    found = judge(records, protocol(claim(second="dpo"))).verdict("it")
    assert "at reward 0.200: dpo by 1 of its 2 arms" in found.notes
