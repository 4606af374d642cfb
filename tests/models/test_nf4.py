"""A matrix in four bits against NF4 of the paper, and a product of it."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch

from nemo_gdpo.models.nf4 import PackedMatrix, frozen_product
from tests.support import bitsandbytes_stand_in
from tests.support.nf4 import TABLE, rounded


@pytest.fixture(autouse=True)
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package if it is installed, else what stands in for it."""
    for name, module in bitsandbytes_stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def matrix(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[6, 128]; one block is zero, and one has an outlier."""
    draw = torch.Generator().manual_seed(3)
    made = torch.randn(6, 128, generator=draw) * 0.02
    made[2, 64:] = 0.0
    made[4, 3] = -1.5
    return made.to(dtype)


def test_the_functions_have_the_signatures_that_are_called() -> None:
    from bitsandbytes import functional

    for name, parameters in bitsandbytes_stand_in.SIGNATURES.items():
        assert list(inspect.signature(getattr(functional, name)).parameters) == parameters


def test_by_hand() -> None:
    """Of 64 numbers the largest is 2: each value of the table, times 2, is met exactly."""
    row = torch.tensor([[2.0 * value for value in TABLE] * 4])
    assert torch.equal(PackedMatrix.of(row).dense(), row)
    # Between 0 and 0.0796: below the middle, 0.0398, it is 0.
    near = row.clone()
    near[0, 5], near[0, 6] = 2 * 0.039, 2 * 0.041
    found = PackedMatrix.of(near).dense()
    assert found[0, 5] == 0
    assert found[0, 6] == 2 * TABLE[8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_and_back_is_the_papers_nf4(dtype: torch.dtype) -> None:
    made = matrix(dtype)
    packed = PackedMatrix.of(made)
    found = packed.dense()
    assert found.dtype == dtype
    assert torch.equal(found, rounded(made))
    assert not torch.equal(found, made)
    # Half a byte a number, and a float32 for 64 of them.
    assert packed.packed.nbytes == made.numel() // 2
    assert packed.state.absmax.nbytes == 4 * made.numel() // 64


def test_a_part_of_whole_blocks_is_a_part_of_the_whole() -> None:
    """What a tensor-parallel rank makes of its rows, or columns, is what one rank has there."""
    made, whole = matrix(), PackedMatrix.of(matrix()).dense()
    assert torch.equal(PackedMatrix.of(made[3:]).dense(), whole[3:])
    assert torch.equal(PackedMatrix.of(made[:, 64:]).dense(), whole[:, 64:])


def test_a_product_has_the_inputs_gradient_and_keeps_no_input() -> None:
    packed = PackedMatrix.of(matrix())
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(5, 2, 128, generator=draw, requires_grad=True)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = frozen_product(x, packed)
    assert not kept
    dense = rounded(matrix())
    assert torch.equal(output, x @ dense.T)
    gradient = torch.randn(output.shape, generator=draw)
    output.backward(gradient)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient @ dense)
