"""The way in tiles against the plain form in float64, value and gradient, and against float32.

The bound on a gradient: the gradient D of a logit that is neither the label's nor EOS's is rounded
to bfloat16, 8 bits, and so errs by 2^-8 |D| at most; all else is float32. Hence 2^-8 |D| @ |W| for
the hidden states' gradient and 2^-8 |D|^T @ |h| for the weight's, float32's own part, and 2^-8 of
the result where it is returned in bfloat16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nemo_gdpo.logprobs import SelectedLogprobs, selected_logprobs, selected_logprobs_reference

from .synthetic import Inputs, evaluate
from .tile_cases import BEFORE, CASES, SHARDED, STRANGE, Case, strange_scores

pytestmark = [pytest.mark.slow, pytest.mark.parallel]

ROOT = Path(__file__).parents[2]
UNIT = 2.0**-8
"""Largest relative error of rounding to bfloat16."""
SINGLE = 2e-5
"""The same of sums in float32 of numbers up to a few hundred, as test_selected.py has it."""


class Expected(NamedTuple):
    """The plain form in float64, and how far off the gradients may be."""

    columns: SelectedLogprobs
    hidden: Tensor
    weight: Tensor
    hidden_bound: Tensor
    weight_bound: Tensor


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found; the interpreter is started once for all cases."""
    folder = tmp_path_factory.mktemp("interpreted")
    done = subprocess.run(
        [sys.executable, "-m", "tests.logprobs.interpreted", str(folder)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return Inputs(*(t.to(dtype) if t.is_floating_point() else t for t in vars(inputs).values()))


def expected(case: Case) -> Expected:
    options = {k: v for k, v in case.options.items() if k != "chunk_tokens"}
    inputs = converted(case.inputs(), torch.float64)
    columns, hidden, weight = evaluate(
        selected_logprobs_reference, inputs, vocab_size=case.vocab_size, **options
    )
    size, eos = case.vocab_size or case.rows, case.options.get("eos_id")
    real = inputs.weight_VH[:size]
    logits = inputs.hidden_TH @ real.T
    slope, slope_error = torch.ones_like(logits), 0.0
    if (cap := case.options.get("logit_softcap")) is not None:
        bent = torch.tanh(logits / cap)
        # 1 - tanh^2 loses all its digits where the soft-cap is reached, in float32.
        logits, slope, slope_error = cap * bent, 1.0 - bent.square(), 2e-6
    total = inputs.label_factor_T.abs()
    if eos is not None:
        total = total + inputs.eos_factor_T.abs()
    exact = torch.nn.functional.one_hot(inputs.labels_T, size).bool()
    if eos is not None:
        exact[:, eos] = True
    dense = logits.softmax(dim=-1) * total[:, None]
    # An error of a logit, 1e-6 of its size and more, is one of its probability.
    single = 1e-6 * (1.0 + logits.abs().amax(dim=-1, keepdim=True)) * slope + slope_error
    spread = UNIT * (dense * slope).where(~exact, 0.0)
    spread += single * (dense + exact * total[:, None])
    weight_bound = torch.zeros_like(weight)
    weight_bound[:size] = spread.T @ inputs.hidden_TH.abs()
    # A float32 sum that starts at BEFORE, or the result in bfloat16.
    weight_bound += 1e-6 * BEFORE if case.main_grad else UNIT * weight.abs()
    hidden_bound = spread @ real.abs() + UNIT * hidden.abs()
    return Expected(columns, hidden, weight, hidden_bound, weight_bound)


def assert_within(one: Tensor, other: Tensor, bound: Tensor) -> None:
    excess = (one.double() - other).abs() - bound
    assert (excess <= 0).all(), f"{float(excess.max()):.2e} beyond the bound"


def assert_columns(values: list[Any], columns: SelectedLogprobs) -> None:
    for value, column in zip(values, columns, strict=True):
        if column is None:
            assert value is None
        else:
            assert value.dtype == torch.float32
            torch.testing.assert_close(
                value, column.detach().float(), rtol=1e-6, atol=SINGLE, check_dtype=False
            )


def shift(case: Case) -> float:
    """What stood in the buffer before."""
    return BEFORE if case.main_grad else 0.0


@pytest.mark.parametrize("name", list(CASES))
def test_equals_the_reference(found: list[dict[str, Any]], name: str) -> None:
    """Values to float32, gradients within the bound; padded rows get exactly zero."""
    case = CASES[name]
    *values, hidden, weight = found[0]["one"][name]
    want = expected(case)
    assert_columns(values, want.columns)
    assert hidden.dtype == torch.bfloat16
    assert weight.dtype == (torch.float32 if case.main_grad else torch.bfloat16)
    assert_within(hidden, want.hidden, want.hidden_bound)
    assert_within(weight - shift(case), want.weight, want.weight_bound)
    if case.vocab_size is not None:
        assert (weight[case.vocab_size :] == shift(case)).all()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scale == 1.0])
def test_within_a_hundred_thousandth_of_float32(found: list[dict[str, Any]], name: str) -> None:
    """bfloat16 operands with float32 sums lose nothing: logits of a few units, soft-capped or not.

    A tempered log-prob of -100 has fewer digits behind the point in either way.
    """
    case = CASES[name]
    wide = converted(case.inputs(), torch.float32)
    other = selected_logprobs(
        wide.hidden_TH, wide.weight_VH, wide.labels_T, vocab_size=case.vocab_size, **case.options
    )
    for value, column in zip(found[0]["one"][name][:3], other, strict=True):
        assert (value is None) == (column is None)
        if column is not None:
            assert ((value - column).abs() <= 1e-5 * (column.abs() / 10).clamp(min=1.0)).all()


def test_the_large_entries_are_not_rounded(found: list[dict[str, Any]]) -> None:
    """1,024 rows of like probability: the label's and EOS's entries are most of the gradient.

    In bfloat16 they would err by 1.7e-3 of its norm, as the whole does where they are rounded.
    """
    case = CASES["flat"]
    want = expected(case).weight
    got = found[0]["one"]["flat"][-1].double() - BEFORE
    assert float((got - want).norm() / want.norm()) < 3e-4


def test_measured_errors(found: list[dict[str, Any]]) -> None:
    """The benchmark's comparison with float32: tiles differ from it, by no more than they may."""
    measured = found[0]["measured"]
    assert 0 < measured["label_error"] < 1e-5
    assert 0 < measured["eos_error"] < 1e-5
    assert 1e-6 < measured["weight_error"] < 1e-3
    assert measured["hidden_error"] < UNIT


def test_tokens_without_a_part_get_zero(found: list[dict[str, Any]]) -> None:
    hidden = found[0]["one"]["tokens without a part in the loss"][3]
    assert (hidden[::2] == 0).all()
    assert (hidden[1::2] != 0).any(dim=1).all()


@pytest.mark.parametrize("name", STRANGE)
def test_logits_that_are_not_finite(found: list[dict[str, Any]], name: str) -> None:
    """-inf has no part in a sum, a whole strip of it neither; inf and NaN are not hidden."""
    expected = strange_scores(selected_logprobs_reference, name)
    assert torch.isfinite(expected).any() or name == "inf"
    torch.testing.assert_close(
        found[0]["strange"][name], expected, rtol=1e-6, atol=SINGLE, equal_nan=True
    )


@pytest.mark.parametrize("name", list(SHARDED))
def test_sharded_equals_whole(found: list[dict[str, Any]], name: str) -> None:
    """Values and the hidden gradient on every rank; the shards' weight gradients put together."""
    case = SHARDED[name]
    want = expected(case)
    for results in found:
        *values, hidden, _ = results["two"][name]
        assert_columns(values, want.columns)
        assert_within(hidden, want.hidden, want.hidden_bound)
    together = torch.cat([results["two"][name][-1] for results in found])
    assert_within(together - shift(case), want.weight, want.weight_bound)
    if case.vocab_size is not None:
        assert (together[case.vocab_size :] == shift(case)).all()


def test_ranks_agree_bit_for_bit(found: list[dict[str, Any]]) -> None:
    for name in SHARDED:
        one, other = (results["two"][name][:-1] for results in found)
        for left, right in zip(one, other, strict=True):
            assert (left is None and right is None) or torch.equal(left, right), name
