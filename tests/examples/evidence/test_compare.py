"""Interpolation, draws and verdicts, on records whose answers are known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.film_reviews.evidence.claims import Judged, Verdict, judge
from examples.film_reviews.evidence.compare import Comparison, Curve, Draws, interval
from examples.film_reviews.evidence.page import markdown
from examples.film_reviews.evidence.protocol import Protocol, read_protocol
from examples.film_reviews.evidence.records import Records, read_records
from examples.film_reviews.evidence.settings import FULL
from nemo_gdpo.errors import UserError

PROMPTS = 12
SEEDS = 5


def write(
    directory: Path, arm: str, seed: int, points: dict[tuple[int, float], Any], **more: Any
) -> None:
    """A record; a metric is a number for all prompts, with a bit of noise by prompt and seed."""
    random = np.random.default_rng([seed, len(arm)])
    record = {
        "schema": 1,
        "identity": {"settings": {}, "objective": {}},
        "model": "m",
        "arm": arm,
        "family": arm,
        "seed": seed,
        "day": "2026-11-28",
        "labels": 100,
        "seconds": {"train": 60.0},
        "prompts": [f"p{n}" for n in range(PROMPTS)],
        **more,
        "points": [
            {
                "update": update,
                "temperature": temperature,
                "metrics": {
                    name: (value + random.normal(0, 0.002, PROMPTS)).tolist()
                    for name, value in {"valid": 1.0, "perplexity": 100.0, **metrics}.items()
                },
            }
            for (update, temperature), metrics in points.items()
        ],
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{arm}--seed-{seed}.json").write_text(json.dumps(record))


def point(reward: float, diversity: float, kl: float = 0.0) -> dict[str, float]:
    return {
        "reward": reward, "semantic_diversity": diversity, "distinct_2": diversity,
        "coverage": diversity, "matched_semantic_diversity": diversity, "kl": kl,
    }  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """DPO loses 0.2 of diversity for 0.4 of reward, the family gdpo-tb 0.1; both in a line."""
    for seed in range(1, SEEDS + 1):
        write(tmp_path, "base", seed, {(0, 1.0): point(0.1, 0.8), (0, 0.5): point(0.3, 0.5)})
        dpo = {(20, 1.0): point(0.3, 0.7, 2.0), (40, 1.0): point(0.5, 0.6, 4.0)}
        write(tmp_path, "dpo-b0.1", seed, dpo, family="dpo")
        tb = {(20, 1.0): point(0.4, 0.725, 3.0), (40, 1.0): point(0.7, 0.65, 6.0)}
        write(tmp_path, "gdpo-tb-k5", seed, tb, family="gdpo-tb")
    return tmp_path


def judged_of(directory: Path) -> tuple[Records, Protocol, Judged]:
    records, protocol = read_records(directory, ["base"]), read_protocol()
    return records, protocol, judge(records, protocol)


def verdict(judged: Judged, name: str) -> Verdict:
    (found,) = (one for one in judged.verdicts if one.claim.id == name)
    return found


def test_a_curve_at_a_level() -> None:
    """Through (0, 10), (1, 20), (0.5, 40), (2, 70): the first crossing counts."""
    curve = Curve(np.array([[0.0, 1.0, 0.5, 2.0]]), np.array([[10.0, 20.0, 40.0, 70.0]]))
    assert curve.at(0.5)[0] == 15.0
    assert curve.at(1.0)[0] == 20.0
    assert curve.at(1.25)[0] == 55.0
    assert np.isnan(curve.at(2.5)[0])
    assert curve.reach == 2.0


def test_draws_begin_with_the_data_and_leave_out_what_is_missing() -> None:
    table = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 8.0]])
    draws = Draws(2, 3, 400)
    means = draws.means(table)
    assert means[0] == pytest.approx(18 / 5)
    # One draw by hand.
    seeds, prompts = draws.seeds_RS[7], draws.prompts_RP[7]
    assert means[7] == pytest.approx(np.nanmean(table[np.ix_(seeds, prompts)]))
    assert np.nanmin(means) >= 1.0 and np.nanmax(means) <= 8.0


def test_an_interval_holds_what_it_says() -> None:
    """Of normal draws: two sigma on each side."""
    values = np.concatenate([[0.0], np.random.default_rng(0).normal(0, 1, 20000)])
    found = interval(values)
    assert found.mean == 0.0
    assert found.low == pytest.approx(-1.96, abs=0.05)
    assert found.high == pytest.approx(1.96, abs=0.05)


def test_more_diversity_at_the_same_reward(directory: Path) -> None:
    """Both reach +0.4. At +0.2 DPO is at 0.7 and gdpo-tb at 0.75; at +0.38 at 0.61 and 0.705."""
    _, _, judged = judged_of(directory)
    assert judged.control.passed
    found = verdict(judged, "gdpo-semantic")
    assert found.outcome == "held"
    half, most = found.differences
    assert half.value.mean == pytest.approx(0.05, abs=0.005)
    assert most.value.mean == pytest.approx(0.095, abs=0.005)
    assert half.where.startswith("at reward 0.3")
    assert len(half.seeds) == SEEDS


def test_the_other_way_round_it_is_refuted(directory: Path) -> None:
    records = read_records(directory)
    comparison = Comparison(records, 200, frozenset())
    found = comparison.matched(
        "dpo", "gdpo-tb", x="reward", y="semantic_diversity", shares=(0.5,), least_gain=0.05
    )
    assert not isinstance(found, str)
    assert found[0].value.mean == pytest.approx(-0.05, abs=0.005)
    assert found[0].value.high < 0


def test_reward_at_equal_divergence(directory: Path) -> None:
    """Both rise by 0.1 a nat: no difference, so the claim of one is refuted by its margin."""
    _, _, judged = judged_of(directory)
    found = verdict(judged, "gdpo-kl")
    assert found.outcome == "refuted"
    assert found.differences[0].value.mean == pytest.approx(0.0, abs=0.005)


def test_without_a_loss_nothing_is_claimed(directory: Path) -> None:
    for seed in range(1, SEEDS + 1):
        kept = {(20, 1.0): point(0.3, 0.79), (40, 1.0): point(0.5, 0.78)}
        write(directory, "dpo-b0.1", seed, kept, family="dpo")
    _, _, judged = judged_of(directory)
    assert not judged.control.passed
    found = verdict(judged, "gdpo-semantic")
    assert found.outcome == "not claimed"
    assert "positive control failed" in found.why


def test_too_little_reward_in_common(directory: Path) -> None:
    for seed in range(1, SEEDS + 1):
        stuck = {(20, 1.0): point(0.11, 0.8), (40, 1.0): point(0.12, 0.8)}
        write(directory, "gdpo-tb-k5", seed, stuck, family="gdpo-tb")
    _, _, judged = judged_of(directory)
    found = verdict(judged, "gdpo-semantic")
    assert found.outcome == "not asked"
    assert "too little reward in common: +0.0" in found.why


def test_the_untouched_model_at_a_lower_temperature(directory: Path) -> None:
    """It pays 0.3 of diversity for 0.2 of reward; DPO 0.1."""
    _, _, judged = judged_of(directory)
    found = verdict(judged, "cooling")
    assert found.outcome == "held"
    assert found.differences[0].value.mean == pytest.approx(0.1, abs=0.01)


def test_noise_takes_no_part(directory: Path) -> None:
    """The last point, most diverse and no text, would have won."""
    for seed in range(1, SEEDS + 1):
        noise = {**point(0.7, 0.99, 6.0), "valid": 0.3}
        salad = {**point(0.7, 0.99, 6.0), "perplexity": 400.0}
        write(
            directory,
            "gdpo-tb-k5",
            seed,
            {(20, 1.0): point(0.4, 0.725), (40, 1.0): noise},
            family="gdpo-tb",
        )
        write(
            directory,
            "gdpo-tb-k9",
            seed,
            {(20, 1.0): point(0.4, 0.725), (40, 1.0): salad},
            family="gdpo-tb",
        )
    _, _, judged = judged_of(directory)
    assert sorted(judged.excluded) == [
        "gdpo-tb-k5 at update 40, temperature 1: 30% of the responses are valid",
        "gdpo-tb-k9 at update 40, temperature 1: perplexity 4.0 times the untouched model's",
    ]
    found = verdict(judged, "gdpo-semantic")
    # Both reach +0.3. At 95 % of that DPO is at 0.6575, gdpo-tb at 0.8 - 0.25 * 0.285.
    assert found.differences[1].value.mean == pytest.approx(0.071, abs=0.005)
    assert found.differences[0].members == (2, 1)


def test_losing_little_is_no_worse(directory: Path) -> None:
    for reward, outcome in ((0.49, "held"), (0.40, "refuted")):
        for seed in range(1, SEEDS + 1):
            write(directory, "adpo-g0.3", seed, {(40, 1.0): point(reward, 0.6)})
        _, _, judged = judged_of(directory)
        assert verdict(judged, "adpo-all").outcome == outcome


def test_few_seeds_of_a_main_claim_are_named(directory: Path) -> None:
    (directory / "gdpo-tb-k5--seed-5.json").unlink()
    _, _, judged = judged_of(directory)
    found = verdict(judged, "gdpo-semantic")
    assert found.why == "4 seeds only"
    assert len(found.differences[0].seeds) == 4


def test_records_that_do_not_compare_are_refused(directory: Path) -> None:
    write(directory, "spl", 1, {(40, 1.0): point(0.4, 0.7)}, model="another")
    with pytest.raises(
        UserError, match=r"spl--seed-1\.json: other prompts, model or settings than"
    ):
        read_records(directory)
    (directory / "spl--seed-1.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_records(directory)
    with pytest.raises(UserError, match="holds no record; run make experiment first"):
        read_records(directory / "nothing")


def test_the_page_says_what_was_found(directory: Path) -> None:
    records, protocol, judged = judged_of(directory)
    text = markdown(
        records, protocol, judged, pictures=["evidence"], settings=FULL.plain(),
        notes=["A note."], stamp="SHA-256 abc", profile="cpu",
    )  # fmt: skip
    assert "GDPO (`tb`) kept more semantic diversity than DPO (+0.0" in text
    assert "It did: **passed**." in text
    assert "GDPO (`tb`) got no more than DPO" in text
    assert "- SPL has more semantic diversity than DPO at the same reward: spl was not run" in text
    assert "![Semantic diversity beside reward" in text
    assert "| `dpo-b0.1` | 5 | 100 | 0.500 ±" in text
    assert "nan" not in text


def test_a_protocol_with_a_mistake_is_refused(tmp_path: Path) -> None:
    from examples.film_reviews.evidence.protocol import PATH

    text = PATH.read_text()
    for wrong, said in (
        (text.replace("kind: no_worse", "kind: better"), "kind better: one of"),
        (text.replace("main: true", "mian: true", 1), "Claim has no mian"),
        (text.replace("resamples: 2000", "samples: 2000"), "Protocol has no samples"),
        (text.replace("id: subtb,", "id: db,"), "two claims have the same id"),
        ("[", "not a protocol"),
    ):
        path = tmp_path / "protocol.yaml"
        path.write_text(wrong)
        with pytest.raises(UserError, match=said):
            read_protocol(path)
