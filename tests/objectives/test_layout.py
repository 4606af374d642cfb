"""Inputs that do not fit together are refused, and numbers keep their type and their precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nemo_gdpo.objectives import DPO, GDPO, ODPO, PairLogps, PairTargets, TokenLogps

from .synthetic import (
    NO_TARGETS,
    OBJECTIVES,
    pair_with_margin,
    random_batch,
    random_side,
    row,
)


def float32(side: TokenLogps) -> TokenLogps:
    def narrow(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.float()

    return replace(
        side,
        label_NT=side.label_NT.float(),
        eos_NT=narrow(side.eos_NT),
        tempered_eos_NT=narrow(side.tempered_eos_NT),
    )


def one_bit(mask_NT: Tensor, row_: int, column: int, value: bool) -> Tensor:
    changed = mask_NT.clone()
    changed[row_, column] = value
    return changed


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_another_responses_reference_is_refused(name: str, side: str) -> None:
    """Same width, one position fewer: each sum alone would be a plausible number."""
    policy, reference, targets = random_batch()
    logps: TokenLogps = getattr(reference, side)
    last = int(logps.mask_NT[2].sum()) - 1
    foreign = replace(logps, mask_NT=one_bit(logps.mask_NT, 2, last, False))
    with pytest.raises(ValueError, match=f"{side} response 2 .*different response positions"):
        OBJECTIVES[name](policy, replace(reference, **{side: foreign}), targets)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [(slice(None), False, "has no position"), (1, False, "do not come first")],
)
def test_masks_without_meaning_are_refused(
    position: int | slice, value: bool, message: str
) -> None:
    side = random_side((4, 3), 1)
    mask_NT = side.mask_NT.clone()
    mask_NT[1, position] = value
    pair = PairLogps(replace(side, mask_NT=mask_NT), side)
    with pytest.raises(ValueError, match=f"chosen response 1 .*{message}"):
        DPO()(pair, pair, NO_TARGETS)


@pytest.mark.parametrize("column", ["label_NT", "eos_NT", "tempered_eos_NT", "mask_NT"])
def test_columns_of_another_shape_are_refused(column: str) -> None:
    """[1, T] would broadcast in silence."""
    policy, reference, _ = random_batch()
    narrow = replace(reference.rejected, **{column: getattr(reference.rejected, column)[:1]})
    with pytest.raises(ValueError, match=f"rejected: reference {column} has shape"):
        GDPO(alpha=0.1, balance="db")(policy, PairLogps(reference.chosen, narrow), NO_TARGETS)


def test_unpaired_responses_are_refused() -> None:
    one, two = random_side((3,), 1), random_side((3, 2), 2)
    with pytest.raises(ValueError, match="1 chosen responses for 2 rejected"):
        DPO()(PairLogps(one, two), PairLogps(one, two), NO_TARGETS)


def test_masks_of_numbers_are_refused() -> None:
    side = random_side((3,), 1)
    pair = PairLogps(replace(side, mask_NT=side.mask_NT.long()), side)
    with pytest.raises(ValueError, match="mask_NT is not bool"):
        DPO()(pair, pair, NO_TARGETS)


def test_completeness_is_one_bool_a_response() -> None:
    side = random_side((3, 2), 1)
    pair = PairLogps(replace(side, complete_N=torch.tensor([True])), side)
    with pytest.raises(ValueError, match="complete_N is not one bool a response"):
        GDPO(alpha=0.1, balance="db")(pair, pair, NO_TARGETS)


def test_one_score_is_not_spread_over_pairs() -> None:
    policy, reference = pair_with_margin(1.5, 1.5)
    with pytest.raises(ValueError, match="1 scores for 2 pairs"):
        ODPO()(policy, reference, PairTargets(row(2.0), row(1.0)))


def test_a_gap_beyond_the_numbers_is_refused() -> None:
    """Both scores are finite, their difference is not."""
    policy, reference = pair_with_margin(1.5)
    with pytest.raises(ValueError, match=r"pair 0 .*offset is not finite"):
        ODPO(offset="identity")(policy, reference, PairTargets(row(1.7e308), row(-1.7e308)))


def test_whole_number_ratings() -> None:
    """6 against 4: log 2."""
    offsets = ODPO().offsets(PairTargets(torch.tensor([6]), torch.tensor([4])))
    assert float(offsets) == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_float32_stays_float32(name: str) -> None:
    """Scores in float64 do not widen the loss."""
    policy, reference, targets = random_batch()
    narrow = [PairLogps(float32(p.chosen), float32(p.rejected)) for p in (policy, reference)]
    output = OBJECTIVES[name](*narrow, targets)
    assert output.loss_N.dtype == torch.float32
    assert {value.dtype for value in output.metrics.values()} == {torch.float32}


@pytest.mark.parametrize("balance", ["db", "subtb", "tb"])
def test_equal_models_cancel_exactly_in_float32(balance: str) -> None:
    """900 positions, sums near -2000: cumulative rewards there are 1e-4 apart, residuals are 0."""
    side = float32(random_side((900, 5), 1))
    other = float32(random_side((700, 3), 2))
    pair = PairLogps(side, other)
    objective = GDPO(alpha=1.0, rejected_log_reward=0.0, balance=balance)
    output = objective(pair, pair, NO_TARGETS)
    assert output.loss_N.tolist() == [0.0, 0.0]
    assert output.metrics["gdpo/log_flow"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("lengths", [(7, 1, 2), (4, 6, 3)])
def test_subtb_without_decay_is_the_limit_of_slow_decay(lengths: tuple[int, ...]) -> None:
    """Two ways to the same number: a variance at 1, a double sum just beside it."""
    policy, reference, _ = random_batch(lengths, lengths[::-1], cut_chosen=(1,))
    at_one = GDPO(balance="subtb", alpha=0.1)(policy, reference, NO_TARGETS).loss_N
    for beside in (1 - 1e-9, 1 + 1e-9):
        found = GDPO(balance="subtb", subtb_lambda=beside, alpha=0.1)(
            policy, reference, NO_TARGETS
        ).loss_N
        torch.testing.assert_close(found, at_one, rtol=1e-7, atol=1e-9)


def test_growing_subtb_weights_do_not_overflow() -> None:
    """2^600 is beyond float32; nearly all weight is on the few longest sub-trajectories."""
    sides = [float32(random_side((600, 4), seed)) for seed in range(4)]
    policy, reference = PairLogps(sides[0], sides[1]), PairLogps(sides[2], sides[3])
    objective = GDPO(balance="subtb", subtb_lambda=2.0, alpha=0.1)
    together = objective(policy, reference, NO_TARGETS).loss_N
    assert torch.isfinite(together).all()

    def second(pair: PairLogps) -> PairLogps:
        def short(side: TokenLogps) -> TokenLogps:
            assert side.eos_NT is not None
            return TokenLogps(side.label_NT[1:, :4], side.mask_NT[1:, :4], side.eos_NT[1:, :4])

        return PairLogps(short(pair.chosen), short(pair.rejected))

    alone = objective(second(policy), second(reference), NO_TARGETS).loss_N
    torch.testing.assert_close(together[1:], alone)
