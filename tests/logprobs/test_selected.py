"""The chunked head against the plain one: values, gradients, padding, precision and memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_gdpo.logprobs import SelectedLogprobs, selected_logprobs, selected_logprobs_reference

from .synthetic import evaluate, random_inputs

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def assert_same(
    found: tuple[SelectedLogprobs, Tensor, Tensor],
    expected: tuple[SelectedLogprobs, Tensor, Tensor],
    tolerance: float,
) -> None:
    for one, other in zip([*found[0], *found[1:]], [*expected[0], *expected[1:]], strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("vocab_size", [None, 19])
@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_equals_the_reference(
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    vocab_size: int | None,
    chunk: int,
) -> None:
    """Value and both gradients, by chunks of one token, of a rest, and of everything."""
    inputs = random_inputs(vocab_size=vocab_size, dtype=dtype)
    options: dict[str, Any] = {
        "eos_id": 7,
        "eos_temperature": temperature,
        "logit_softcap": softcap,
        "vocab_size": vocab_size,
    }
    found = evaluate(selected_logprobs, inputs, chunk_tokens=chunk, **options)
    expected = evaluate(selected_logprobs_reference, inputs, **options)
    assert_same(found, expected, TOLERANCE[dtype])
    assert found[0].label_T.dtype == dtype
    assert found[1].dtype == dtype


@pytest.mark.parametrize("scorer", [selected_logprobs, selected_logprobs_reference])
def test_by_hand(scorer: Any) -> None:
    """Logits log (1, 2, 5): p = (1/8, 1/4, 5/8); at temperature 1/2, p^2: (1, 4, 25) / 30."""
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log()[:, None]
    hidden = torch.ones(2, 1, dtype=torch.float64)
    found = scorer(hidden, weight, torch.tensor([0, 2]), eos_id=1, eos_temperature=0.5)
    expected = [[1 / 8, 5 / 8], [1 / 4, 1 / 4], [4 / 30, 4 / 30]]
    for column, probabilities in zip(found, expected, strict=True):
        assert column.exp().tolist() == pytest.approx(probabilities, rel=1e-12)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_against_finite_differences(softcap: float | None) -> None:
    inputs = random_inputs(tokens=4, rows=6, width=3, vocab_size=5)

    def columns(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        result = selected_logprobs(
            hidden,
            weight,
            inputs.labels_T,
            eos_id=2,
            chunk_tokens=3,
            logit_softcap=softcap,
            vocab_size=5,
        )
        assert result.eos_T is not None
        return result.label_T, result.eos_T

    leaves = (inputs.hidden_TH.requires_grad_(), inputs.weight_VH.requires_grad_())
    assert torch.autograd.gradcheck(columns, leaves, eps=1e-6, atol=1e-7)


def test_without_eos() -> None:
    inputs = random_inputs()
    found = evaluate(selected_logprobs, inputs, chunk_tokens=3)
    assert found[0].eos_T is None
    assert found[0].tempered_eos_T is None
    assert_same(found, evaluate(selected_logprobs_reference, inputs), 1e-12)


def test_label_that_is_eos_has_one_number() -> None:
    inputs = random_inputs()
    labels = torch.full_like(inputs.labels_T, 7)
    found = selected_logprobs(inputs.hidden_TH, inputs.weight_VH, labels, eos_id=7)
    torch.testing.assert_close(found.label_T, found.eos_T)


def test_tempered_column_has_no_gradient() -> None:
    """At temperature 1 it is the EOS column itself."""
    inputs = random_inputs()
    hidden = inputs.hidden_TH.requires_grad_()
    tempered = selected_logprobs(
        hidden, inputs.weight_VH, inputs.labels_T, eos_id=7, eos_temperature=0.1
    )
    assert tempered.tempered_eos_T is not None
    assert not tempered.tempered_eos_T.requires_grad
    assert tempered.eos_T is not None
    assert tempered.eos_T.requires_grad
    plain = selected_logprobs(hidden, inputs.weight_VH, inputs.labels_T, eos_id=7)
    assert plain.tempered_eos_T is plain.eos_T


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_no_tokens(temperature: float) -> None:
    """T = 0: empty columns and gradients of zero."""
    inputs = random_inputs(tokens=0)
    result, hidden_grad, weight_grad = evaluate(
        selected_logprobs, inputs, eos_id=7, eos_temperature=temperature
    )
    assert all(column is not None and column.shape == (0,) for column in result)
    assert hidden_grad.shape == (0, 5)
    assert torch.equal(weight_grad, torch.zeros(24, 5, dtype=torch.float64))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_bfloat16_inputs_are_computed_in_float32(softcap: float | None) -> None:
    """The float32 result of the same numbers; gradients come back in the inputs' type."""
    narrow = random_inputs(dtype=torch.bfloat16)
    wide = random_inputs(dtype=torch.bfloat16)
    wide = type(wide)(
        wide.hidden_TH.float(),
        wide.weight_VH.float(),
        wide.labels_T,
        wide.label_factor_T,
        wide.eos_factor_T,
    )
    options: dict[str, Any] = {
        "eos_id": 7,
        "eos_temperature": 0.1,
        "logit_softcap": softcap,
        "chunk_tokens": 3,
    }
    found = evaluate(selected_logprobs, narrow, **options)
    expected = evaluate(selected_logprobs, wide, **options)
    for one, other in zip(found[0], expected[0], strict=True):
        assert one is not None
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.dtype == torch.bfloat16
        # Accumulated in float32 and rounded once.
        assert torch.equal(one, other.bfloat16())


def test_autocast_does_not_narrow_the_arithmetic() -> None:
    inputs = random_inputs(dtype=torch.float32)
    expected = evaluate(selected_logprobs, inputs, eos_id=7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = evaluate(selected_logprobs, inputs, eos_id=7)
    for one, other in zip([*found[0], *found[1:]], [*expected[0], *expected[1:]], strict=True):
        assert one is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("fill", [1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_padded_rows_take_no_part(fill: float, softcap: float | None) -> None:
    """Whatever stands in them: same values and gradients, and exactly zero for themselves."""
    inputs = random_inputs(vocab_size=19)
    options: dict[str, Any] = {"eos_id": 7, "eos_temperature": 0.1, "logit_softcap": softcap}
    short = type(inputs)(
        inputs.hidden_TH,
        inputs.weight_VH[:19],
        inputs.labels_T,
        inputs.label_factor_T,
        inputs.eos_factor_T,
    )
    inputs.weight_VH[19:] = fill
    found = evaluate(selected_logprobs, inputs, vocab_size=19, chunk_tokens=3, **options)
    expected = evaluate(selected_logprobs, short, chunk_tokens=3, **options)
    assert_same((found[0], found[1], found[2][:19]), expected, 1e-13)
    assert torch.equal(found[2][19:], torch.zeros(5, 5, dtype=torch.float64))


def test_large_logits_stay_finite() -> None:
    """Gaps of thousands of nats: log-probs and gradients without overflow."""
    inputs = random_inputs(dtype=torch.float32)
    big = type(inputs)(
        inputs.hidden_TH * 1000.0,
        inputs.weight_VH,
        inputs.labels_T,
        inputs.label_factor_T,
        inputs.eos_factor_T,
    )
    result, hidden_grad, weight_grad = evaluate(
        selected_logprobs, big, eos_id=7, eos_temperature=0.1
    )
    assert all(column is not None and torch.isfinite(column).all() for column in result)
    assert torch.isfinite(hidden_grad).all()
    assert torch.isfinite(weight_grad).all()
    assert float(result.label_T.detach().min()) < -1000


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_input_without_gradient(frozen: str) -> None:
    inputs = random_inputs()
    expected = evaluate(selected_logprobs_reference, inputs, eos_id=7)
    hidden = inputs.hidden_TH.clone().requires_grad_(frozen != "hidden")
    weight = inputs.weight_VH.clone().requires_grad_(frozen != "weight")
    result = selected_logprobs(hidden, weight, inputs.labels_T, eos_id=7, chunk_tokens=3)
    assert result.eos_T is not None
    loss = (result.label_T * inputs.label_factor_T + result.eos_T * inputs.eos_factor_T).sum()
    loss.backward()
    if frozen == "hidden":
        assert hidden.grad is None
        torch.testing.assert_close(weight.grad, expected[2])
    else:
        assert weight.grad is None
        torch.testing.assert_close(hidden.grad, expected[1])


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave, other than the given shapes."""

    def __init__(self, *ignored: tuple[int, ...]) -> None:
        super().__init__()
        self.ignored = ignored
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tuple(tensor.shape) not in self.ignored:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_no_tensor_larger_than_a_chunk_of_logits(softcap: float | None, temperature: float) -> None:
    """128 tokens, 96 rows, chunks of 8: at most 8 * 96 elements, forward and backward.

    The head's own shape apart (its copy and gradient, and their transposes). The plain form holds
    all 128 * 96, which shows that the meter works.
    """
    tokens, rows, width, chunk = 128, 96, 4, 8
    inputs = random_inputs(tokens, rows, width, dtype=torch.float32)
    options: dict[str, Any] = {
        "eos_id": 7,
        "eos_temperature": temperature,
        "logit_softcap": softcap,
    }
    head_shapes = ((rows, width), (width, rows))
    with Largest(*head_shapes) as chunked:
        evaluate(selected_logprobs, inputs, chunk_tokens=chunk, **options)
    with Largest(*head_shapes) as plain:
        evaluate(selected_logprobs_reference, inputs, **options)
    assert chunked.elements == chunk * rows
    assert plain.elements == tokens * rows


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("scorer", [selected_logprobs, selected_logprobs_reference])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eos_temperature": 0.0}, "eos_temperature"),
        ({"eos_temperature": -1.0}, "eos_temperature"),
        ({"eos_temperature": NAN}, "eos_temperature"),
        ({"eos_temperature": INF}, "eos_temperature"),
        ({"logit_softcap": 0.0}, "logit_softcap"),
        ({"logit_softcap": -30.0}, "logit_softcap"),
        ({"logit_softcap": NAN}, "logit_softcap"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 25}, "vocab_size 25 does not fit the head's 24 rows"),
        ({"eos_id": -1}, "eos_id"),
        ({"eos_id": 24}, "eos_id"),
        ({"eos_id": 19, "vocab_size": 19}, "eos_id"),
        # The last label is 23, which is padding of a vocabulary of 19.
        ({"vocab_size": 19}, "labels run from 0 to 23"),
    ],
)
def test_wrong_options(scorer: Any, options: dict[str, Any], message: str) -> None:
    inputs = random_inputs()
    with pytest.raises(ValueError, match=message):
        scorer(inputs.hidden_TH, inputs.weight_VH, inputs.labels_T, **{"eos_id": 7, **options})


@pytest.mark.parametrize("chunk", [0, -1])
def test_wrong_chunk(chunk: int) -> None:
    inputs = random_inputs()
    with pytest.raises(ValueError, match="chunk_tokens"):
        selected_logprobs(inputs.hidden_TH, inputs.weight_VH, inputs.labels_T, chunk_tokens=chunk)


@pytest.mark.parametrize("scorer", [selected_logprobs, selected_logprobs_reference])
def test_wrong_shapes_and_labels(scorer: Any) -> None:
    inputs = random_inputs()
    hidden, weight, labels = inputs.hidden_TH, inputs.weight_VH, inputs.labels_T
    with pytest.raises(ValueError, match="hidden states for labels"):
        scorer(hidden, weight, labels[1:])
    with pytest.raises(ValueError, match="are not"):
        scorer(hidden, weight[:, 1:], labels)
    with pytest.raises(ValueError, match="are not"):
        scorer(hidden[None], weight, labels)
    for wrong in (-100, -1, 24):
        bad = labels.clone()
        bad[3] = wrong
        with pytest.raises(ValueError, match="labels run from"):
            scorer(hidden, weight, bad)
