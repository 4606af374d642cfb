"""A pair's loss and gradient depend on that pair alone: not on padding, order or companions."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from nemo_gdpo.objectives import Objective, PairLogps, PairTargets, TokenLogps

from .synthetic import OBJECTIVES, gradients, random_batch, with_gradient

EVERY_OBJECTIVE = pytest.mark.parametrize("name", list(OBJECTIVES))
# Pair 2's rejected and pair 3's chosen response were cut.
CUT = {"cut_chosen": (3,), "cut_rejected": (2,)}


def wider(side: TokenLogps, extra: int, fill: float) -> TokenLogps:
    """`extra` more columns of padding, and `fill` at every padded position."""
    mask = torch.nn.functional.pad(side.mask_NT, (0, extra))

    def column(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return torch.nn.functional.pad(values, (0, extra)).masked_fill(~mask, fill)

    label = column(side.label_NT)
    assert label is not None
    return replace(
        side,
        label_NT=label,
        mask_NT=mask,
        eos_NT=column(side.eos_NT),
        tempered_eos_NT=column(side.tempered_eos_NT),
    )


def rows_of(side: TokenLogps, index: list[int]) -> TokenLogps:
    values = {field.name: getattr(side, field.name) for field in fields(side)}
    return TokenLogps(**{k: None if v is None else v[index] for k, v in values.items()})


def evaluate(
    objective: Objective, policy: PairLogps, reference: PairLogps, targets: PairTargets
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """(losses, gradients of their sum by column, metrics)."""
    policy = with_gradient(policy)
    output = objective(policy, reference, targets)
    output.loss_N.sum().backward()
    return output.loss_N.detach(), list(gradients(policy)), output.metrics


def both(pair: PairLogps, extra: int, fill: float) -> PairLogps:
    return PairLogps(wider(pair.chosen, extra, fill), wider(pair.rejected, extra, fill))


@EVERY_OBJECTIVE
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -float("inf"), -1e30, 3.0])
def test_what_stands_in_padding_is_never_read(name: str, fill: float) -> None:
    """Bit-equal losses and metrics; padding's gradient is exactly zero."""
    policy, reference, targets = random_batch(**CUT)
    loss, grads, metrics = evaluate(OBJECTIVES[name], policy, reference, targets)
    dirty = evaluate(OBJECTIVES[name], both(policy, 0, fill), both(reference, 0, fill), targets)
    assert torch.equal(dirty[0], loss)
    for found, clean in zip(dirty[1], grads, strict=True):
        assert torch.equal(found, clean)
    for key, value in metrics.items():
        assert torch.equal(dirty[2][key], value), key
    for found, side in zip(dirty[1], [policy.chosen] * 2 + [policy.rejected] * 2, strict=True):
        assert (found[~side.mask_NT] == 0).all()


@EVERY_OBJECTIVE
@pytest.mark.parametrize("extra", [1, 7])
def test_amount_of_padding(name: str, extra: int) -> None:
    policy, reference, targets = random_batch(**CUT)
    loss, grads, metrics = evaluate(OBJECTIVES[name], policy, reference, targets)
    found = evaluate(
        OBJECTIVES[name], both(policy, extra, -2.0), both(reference, extra, -2.0), targets
    )
    torch.testing.assert_close(found[0], loss, rtol=1e-13, atol=1e-13)
    for wide, narrow in zip(found[1], grads, strict=True):
        padded = torch.nn.functional.pad(narrow, (0, extra))
        torch.testing.assert_close(wide, padded, rtol=1e-13, atol=1e-13)
    for key, value in metrics.items():
        torch.testing.assert_close(found[2][key], value, rtol=1e-13, atol=1e-13)


@EVERY_OBJECTIVE
@pytest.mark.parametrize("index", [[3, 1, 0, 2], [2], [0, 3], [1, 1, 1, 2, 3]])
def test_order_and_companions(name: str, index: list[int]) -> None:
    """Any selection of rows gives those rows' losses, gradients and metrics."""
    policy, reference, targets = random_batch(**CUT)
    loss, grads, metrics = evaluate(OBJECTIVES[name], policy, reference, targets)

    def select(pair: PairLogps) -> PairLogps:
        return PairLogps(rows_of(pair.chosen, index), rows_of(pair.rejected, index))

    won, lost = targets.chosen_score_N, targets.rejected_score_N
    assert won is not None
    assert lost is not None
    found = evaluate(
        OBJECTIVES[name], select(policy), select(reference), PairTargets(won[index], lost[index])
    )
    torch.testing.assert_close(found[0], loss[index], rtol=1e-13, atol=1e-13)
    for part, whole in zip(found[1], grads, strict=True):
        torch.testing.assert_close(part, whole[index], rtol=1e-13, atol=1e-13)
    for key, value in metrics.items():
        torch.testing.assert_close(found[2][key], value[index], rtol=1e-13, atol=1e-13)


@EVERY_OBJECTIVE
def test_sides_may_be_padded_differently(name: str) -> None:
    policy, reference, targets = random_batch(**CUT)
    loss, _, _ = evaluate(OBJECTIVES[name], policy, reference, targets)

    def lopsided(pair: PairLogps) -> PairLogps:
        return PairLogps(wider(pair.chosen, 4, float("nan")), pair.rejected)

    found = evaluate(OBJECTIVES[name], lopsided(policy), lopsided(reference), targets)
    torch.testing.assert_close(found[0], loss, rtol=1e-13, atol=1e-13)


@EVERY_OBJECTIVE
def test_the_reference_gets_no_gradient(name: str) -> None:
    policy, reference, targets = random_batch()
    policy, reference = with_gradient(policy), with_gradient(reference)
    OBJECTIVES[name](policy, reference, targets).loss_N.sum().backward()
    for side in (reference.chosen, reference.rejected):
        assert side.label_NT.grad is None
        assert side.eos_NT is not None
        assert side.eos_NT.grad is None
    assert any(bool((g != 0).any()) for g in gradients(policy))


@EVERY_OBJECTIVE
def test_metrics_are_detached_and_one_a_pair(name: str) -> None:
    policy, reference, targets = random_batch()
    output = OBJECTIVES[name](with_gradient(policy), reference, targets)
    assert output.loss_N.shape == (4,)
    for key, value in output.metrics.items():
        assert value.shape == (4,), key
        assert not value.requires_grad, key


@EVERY_OBJECTIVE
def test_bfloat16_columns_are_summed_in_float32(name: str) -> None:
    """Sums near -300 have a spacing of 2 in bfloat16; the loss is that of the same numbers wide."""
    policy, reference, targets = random_batch((90, 40), (70, 80))

    def cast(pair: PairLogps, *dtypes: torch.dtype) -> PairLogps:
        def side(logps: TokenLogps) -> TokenLogps:
            columns = {
                key: values
                for key in ("label_NT", "eos_NT", "tempered_eos_NT")
                if (values := getattr(logps, key)) is not None
            }
            for dtype in dtypes:
                columns = {key: values.to(dtype) for key, values in columns.items()}
            return replace(logps, **columns)

        return PairLogps(side(pair.chosen), side(pair.rejected))

    narrow, wide = (torch.bfloat16,), (torch.bfloat16, torch.float32)
    objective = OBJECTIVES[name]
    found = objective(cast(policy, *narrow), cast(reference, *narrow), targets).loss_N
    expected = objective(cast(policy, *wide), cast(reference, *wide), targets).loss_N
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-5, atol=1e-5)
