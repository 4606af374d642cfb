"""What held and what did not: outcomes follow from the numbers, whichever they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from examples.film_reviews.experiment.verdict import Comparison, Verdict, interpolated, verdicts
from nemo_gdpo.evaluation.results import Results
from tests.examples.known_results import results, sweep

BASE = ([0.2, 0.1, 0.0], [0.60, 0.70, 0.80])
DPO = ([0.5, 0.4, 0.3], [0.40, 0.50, 0.60])

Found = dict[str, dict[int, Results]]


def found(
    gdpo: tuple[Sequence[float], Sequence[float]],
    *,
    name: str = "gdpo-tb-k8",
    flags: Sequence[str] = (),
) -> Found:
    return {
        "base": {1: results("base", sweep(*BASE))},
        "dpo": {1: results("dpo", sweep(*DPO))},
        name: {1: results(name, sweep(*gdpo), flags=flags)},
    }


def outcome(made: Sequence[Verdict], words: str) -> Verdict:
    (verdict,) = (v for v in made if words in v.claim)
    return verdict


def test_interpolation_between_settings() -> None:
    rewards, diversity = [0.5, 0.4, 0.3], [0.4, 0.5, 0.6]
    assert interpolated(0.45, rewards, diversity) == pytest.approx(0.45)
    assert interpolated(0.3, rewards, diversity) == pytest.approx(0.6)
    assert np.isnan(interpolated(0.51, rewards, diversity))
    assert np.isnan(interpolated(0.29, rewards, diversity))
    # Where a sweep has a reward twice, the better of its two diversities counts.
    assert interpolated(0.4, [0.5, 0.3, 0.5], [0.1, 0.2, 0.9]) == pytest.approx(0.55)
    assert interpolated(0.4, [0.4, 0.4], [0.1, 0.3]) == pytest.approx(0.1)


def test_more_diverse_at_the_same_reward_holds() -> None:
    # Half a step further on the diversity axis at each of DPO's rewards.
    made = verdicts(found(([0.48, 0.4, 0.32], [0.52, 0.6, 0.68])), 400)
    verdict = outcome(made, "is more diverse than dpo")
    assert verdict.outcome == "held"
    matched = [d for d in verdict.differences if d.value.mean == pytest.approx(0.1, abs=1e-9)]
    # At reward 0.48 DPO has 0.42, at 0.40 0.50, at 0.32 0.58: the difference is 0.10 each time.
    assert len(matched) >= 3
    assert verdict.evidence[-1].startswith("one training seed")


def test_less_diverse_is_the_opposite() -> None:
    made = verdicts(found(([0.48, 0.4, 0.32], [0.32, 0.4, 0.48])), 400)
    assert outcome(made, "is more diverse than dpo").outcome == "the opposite"


def test_the_same_is_not_decided() -> None:
    assert outcome(verdicts(found(DPO), 400), "is more diverse than dpo").outcome == "not decided"


def test_another_reward_cannot_be_compared() -> None:
    # Far more diverse, and not aligned at all: that does not support the claim.
    made = verdicts(found(([0.1, 0.05, 0.0], [0.8, 0.85, 0.9])), 400)
    verdict = outcome(made, "is more diverse than dpo")
    assert verdict.outcome == "could not be asked: no comparable reward"
    assert verdict.evidence[0].endswith("less reward, which is not comparable")


def test_a_reward_that_may_be_comparable_decides_nothing() -> None:
    # Half of the prompts lose 0.5 and half win 0.3: -0.1 in the mean, give or take 0.23.
    gdpo = sweep([0.4, 0.3, 0.2], [0.8, 0.85, 0.9])
    for metrics in gdpo:
        rewards = metrics["reward"]
        metrics["reward"] = [(r or 0.0) + (0.4 if n % 2 else -0.4) for n, r in enumerate(rewards)]
    arms = found(DPO) | {
        "dpo": {1: results("dpo", sweep([0.5] * 3, [0.4, 0.5, 0.6]))},
        "gdpo-tb-k8": {1: results("gdpo-tb-k8", gdpo)},
    }
    verdict = outcome(verdicts(arms, 400), "is more diverse than dpo")
    assert verdict.outcome == "not decided"
    assert "is at most 0.05 lower is not certain" in verdict.evidence[0]


def test_more_reward_and_more_diversity_is_compared_directly() -> None:
    made = verdicts(found(([0.9, 0.8, 0.7], [0.6, 0.7, 0.8])), 400)
    assert outcome(made, "is more diverse than dpo").outcome == "held"


def test_degenerate_arm_cannot_win() -> None:
    made = verdicts(found(([0.48, 0.4, 0.32], [0.52, 0.6, 0.68]), flags=["noise"]), 400)
    verdict = outcome(made, "is more diverse than dpo")
    assert verdict.outcome == "could not be asked: the arm looks degenerate"
    assert "at T=0.7: not counted, degenerate: gdpo-tb-k8 (noise)" in verdict.evidence
    learned = outcome(made, "gdpo-tb-k8: training raised")
    assert learned.outcome == "could not be asked: the arm looks degenerate"


def test_a_setting_that_degenerates_takes_no_part() -> None:
    """At 1.3 every arm is noise: what is found at the other two settings counts."""

    def arms(dpo_at_one_three: float) -> Found:
        sound_dpo = sweep([0.5, 0.4, 0.3], [0.4, 0.5, dpo_at_one_three])
        gdpo = sweep([0.48, 0.42, 0.3], [0.52, 0.58, 0.1])
        hot = {"flags": ["noise"], "flagged_at": [1.3]}
        return {
            "base": {1: results("base", sweep(*BASE), **hot)},
            "dpo": {1: results("dpo", sound_dpo, **hot)},
            "gdpo-tb-k8": {1: results("gdpo-tb-k8", gdpo, **hot)},
        }

    verdict = outcome(verdicts(arms(0.6), 400), "is more diverse than dpo")
    assert verdict.outcome == "held"
    line = "at T=1.3: not counted, degenerate: gdpo-tb-k8 (noise), dpo (noise)"
    assert line in verdict.evidence
    # Nor is the other arm's noise a point of its curve: whatever it is, nothing changes.
    assert verdicts(arms(0.99), 400)[2] == verdict


def test_reward_against_the_untouched_model() -> None:
    made = verdicts(found(DPO), 400)
    verdict = outcome(made, "dpo: training raised the reward")
    assert verdict.outcome == "held"
    # At temperature 1, 0.4 - 0.1 for every prompt.
    assert verdict.evidence[0].startswith("reward +0.300 [+0.300, +0.300]")
    flat = found(DPO) | {"dpo": {1: results("dpo", sweep(*BASE))}}
    assert outcome(verdicts(flat, 400), "dpo: training raised").outcome == "not decided"


def test_released_defaults_fall_by_flags_or_lost_diversity() -> None:
    claim = "released defaults"
    same = found(BASE, name="gdpo-released")
    assert outcome(verdicts(same, 400), claim).outcome == "held"
    flagged = found(BASE, name="gdpo-released", flags=["short"])
    assert outcome(verdicts(flagged, 400), claim).outcome == "did not hold"
    # At a temperature that makes noise of the untouched model, too, it is not the training's fault.
    hot = {"flags": ["noise"], "flagged_at": [1.3]}
    both: Found = {
        name: {1: results(name, sweep(*BASE), **hot)} for name in ("base", "gdpo-released")
    }
    assert outcome(verdicts(both, 400), claim).outcome == "held"
    collapsed = found(([0.2, 0.1, 0.0], [0.2, 0.3, 0.4]), name="gdpo-released")
    assert outcome(verdicts(collapsed, 400), claim).outcome == "did not hold"


def test_labels_saved_and_labels_well_chosen() -> None:
    facts = {"queries asked": 120, "pairs seen": 240}
    arms = found(DPO) | {
        "adpo": {1: results("adpo", sweep([0.48, 0.38, 0.28], DPO[1]), facts=facts)},
        "dpo-random": {1: results("dpo-random", sweep([0.4, 0.3, 0.2], DPO[1]))},
    }
    made = verdicts(arms, 400)
    fewer = outcome(made, "with fewer labels")
    # 0.02 less than DPO, which 0.05 allows.
    assert fewer.outcome == "held"
    assert "labels asked for: 120 of 240 (seed 1)" in fewer.evidence
    assert outcome(made, "beats asking at random").outcome == "held"
    arms["adpo"] = {1: results("adpo", sweep([0.3, 0.2, 0.1], DPO[1]), facts=facts)}
    made = verdicts(arms, 400)
    assert outcome(made, "with fewer labels").outcome == "the opposite"
    assert outcome(made, "beats asking at random").outcome == "the opposite"


def test_seeds_are_paired_and_drawn() -> None:
    low, high = [0.3, 0.3, 0.3], [0.5, 0.5, 0.5]
    arms: Found = {
        "base": {s: results("base", sweep(*BASE)) for s in (1, 2, 3)},
        # The difference to the base goes from 0.2 to 0.4 with the seed.
        "dpo": {
            1: results("dpo", sweep(low, DPO[1])),
            2: results("dpo", sweep(high, DPO[1])),
            4: results("dpo", sweep(high, DPO[1])),
        },
    }
    c = Comparison(arms, 2000)
    assert c.seeds("dpo", "base") == [1, 2]
    difference = c.difference("dpo", "base", "reward", c.samplings[1])
    assert difference is not None and difference.seeds == 2
    value = difference.value
    assert value.mean == pytest.approx(0.3)
    assert (value.low, value.high) == (pytest.approx(0.2), pytest.approx(0.4))


def test_a_mixed_sweep_is_called_mixed() -> None:
    made = verdicts(found(([0.5, 0.4, 0.3], [0.50, 0.50, 0.50])), 400)
    # More at 0.7, as much at 1, less at 1.3.
    assert outcome(made, "is more diverse than dpo").outcome == "mixed"
