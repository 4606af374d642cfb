"""Products of a rehearsal, and which layers have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from nemo_gdpo.models import rehearsal
from nemo_gdpo.models.fp8 import E4M3, E5M2, Blockwise, Delayed, Tensorwise
from nemo_gdpo.models.rehearsal import Operands, RehearsedProduct, operands_of, rehearse_fp8

DELAYED = Operands(Delayed(E4M3, None), Delayed(E4M3, None), Delayed(E5M2, None))


def product(operands: Operands, x: torch.Tensor, weight: torch.Tensor, **changes: Any) -> Any:
    given = {
        "bias": None,
        "gradient_accumulation_fusion": False,
        "allreduce_dgrad": False,
        "sequence_parallel": False,
        "tp_group": None,
    }
    return RehearsedProduct(operands)(input=x, weight=weight, **(given | changes))


def test_tensorwise_by_hand() -> None:
    """Scales: 256 for x, 512 for the weight. 1.1 becomes 1.125, 0.3 0.3125 and 0.7 0.6875."""
    x = torch.tensor([[[1.1, 0.5]]], requires_grad=True)
    weight = torch.tensor([[0.3, -0.7]], requires_grad=True)
    output = product(operands_of("tensorwise"), x, weight)
    assert output.tolist() == [[[1.125 * 0.3125 - 0.5 * 0.6875]]]
    output.backward(torch.tensor([[[1.1]]]))  # E5M2 has steps of 1/4 there: 1.0
    assert x.grad is not None and weight.grad is not None
    assert x.grad.tolist() == [[[0.3125, -0.6875]]]
    assert weight.grad.tolist() == [[1.125, 0.5]]


def test_a_frozen_weight_and_a_bias() -> None:
    x = torch.tensor([[[1.1, 0.5]]], requires_grad=True)
    bias = torch.tensor([0.3], requires_grad=True)  # is not rounded
    output = product(operands_of("tensorwise"), x, torch.tensor([[0.3, -0.7]]), bias=bias)
    assert float(output) == pytest.approx(0.0078125 + 0.3)
    output.backward(torch.tensor([[[1.1]]]))
    assert x.grad is not None and bias.grad is not None
    assert x.grad.tolist() == [[[0.3125, -0.6875]]]
    assert bias.grad.tolist() == pytest.approx([1.1])


def test_blockwise_rounds_along_what_is_summed_over() -> None:
    """Input and gradient of the weight's product are rounded in blocks of 128 tokens."""
    draw = torch.Generator().manual_seed(1)
    x = (torch.randn(150, 2, 140, generator=draw) * 10).requires_grad_()
    weight = torch.randn(30, 140, generator=draw).requires_grad_()
    gradient = torch.randn(150, 2, 30, generator=draw)
    product(operands_of("blockwise"), x, weight).backward(gradient)
    rows, square = Blockwise(square=False), Blockwise(square=True)
    g_along_N, g_along_T = rows(gradient.reshape(300, 30), updates=True)
    _, x_along_T = rows(x.detach().reshape(300, 140), updates=True)
    assert x.grad is not None and weight.grad is not None
    torch.testing.assert_close(
        x.grad.reshape(300, 140), g_along_N @ square(weight.detach(), updates=True)[0]
    )
    torch.testing.assert_close(weight.grad, g_along_T.T @ x_along_T)


def test_delayed_scales_move_with_gradients_alone() -> None:
    x, weight = torch.tensor([[[1.1]]]), torch.tensor([[0.3]], requires_grad=True)
    with torch.no_grad():
        first = [float(product(DELAYED, x, weight)) for _ in range(2)]
    assert first == [1.125 * 0.3125] * 2
    product(DELAYED, x, weight).backward(torch.tensor([[[1.1]]]))
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0 * 1.125]]  # E5M2 of 1.1 under the scale 1
    # Both are now the greatest number of E4M3, which FP8 holds as it is.
    assert float(product(DELAYED, x, weight)) == pytest.approx(1.1 * 0.3, rel=1e-6)


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
def test_gradients_have_five_bits_of_exponent_but_in_blocks(recipe: str) -> None:
    found = operands_of(recipe)
    if recipe == "blockwise":
        assert isinstance(found.gradient, Blockwise)
    else:
        assert isinstance(found.gradient, Tensorwise)
        assert found.gradient(torch.tensor([[1.1]]), updates=True)[0].item() == 1.0
        assert found.input(torch.tensor([[1.1]]), updates=True)[0].item() == 1.125


def test_the_first_and_the_last_layer_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(kind: type[Any]) -> Any:
        module = kind.__new__(kind)
        torch.nn.Module.__init__(module)
        return module

    def layer(number: int) -> Any:
        found: Any = torch.nn.Module()
        found.layer_number = number
        found.qkv, found.proj = bare(ColumnParallelLinear), bare(RowParallelLinear)
        found.norm = torch.nn.LayerNorm(2)
        return found

    layers = [layer(number) for number in (1, 2, 3, 4)]
    gpt: Any = SimpleNamespace(decoder=SimpleNamespace(layers=layers))
    rehearse_fp8(gpt, "tensorwise", 4)
    rounds = [
        [isinstance(vars(part).get("_forward_impl"), RehearsedProduct) for part in one.children()]
        for one in layers
    ]
    assert rounds == [[False] * 3, [True, True, False], [True, True, False], [False] * 3]
    # Every layer has scales of its own.
    monkeypatch.setattr(rehearsal.parallel_state, "get_amax_reduction_group", lambda **_: None)
    rehearse_fp8(gpt, "delayed", 4)
    assert layers[1].qkv._forward_impl._operands is not layers[1].proj._forward_impl._operands
