"""FP8 rounding by hand, and as Transformer Engine's recipes have it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nemo_gdpo.models.fp8 import E4M3, E5M2, Blockwise, Delayed, Tensorwise, rounded, scale_of
from tests.gpu_path.compiled import quantize, storage
from tests.gpu_path.compiled.enums import DType

ONE = torch.ones(())
DTYPES = {E4M3: DType.kFloat8E4M3, E5M2: DType.kFloat8E5M2}


@pytest.mark.parametrize(
    ("number", "in_e4m3", "in_e5m2"),
    [
        # Three bits of mantissa: steps of 1/8 from 1 to 2; two bits: of 1/4. Ties go to even.
        (1.1, 1.125, 1.0),
        (1.0625, 1.0, 1.0),
        (1.1875, 1.25, 1.25),
        (-17.0, -16.0, -16.0),
        (460.0, 448.0, 448.0),
        (60000.0, 448.0, 57344.0),
        # The smallest numbers: 2^-9 of E4M3, 2^-16 of E5M2; half of one is a tie to 0.
        (2.0**-9, 2.0**-9, 2.0**-9),
        (2.0**-10, 0.0, 2.0**-10),
        (3 * 2.0**-11, 2.0**-9, 3 * 2.0**-11),
    ],
)
def test_rounding_by_hand(number: float, in_e4m3: float, in_e5m2: float) -> None:
    assert float(rounded(torch.tensor(number), ONE, E4M3)) == in_e4m3
    assert float(rounded(torch.tensor(number), ONE, E5M2)) == in_e5m2


@pytest.mark.parametrize(
    ("amax", "scale"),
    [(448.0, 1.0), (449.0, 0.5), (1.0, 256.0), (0.9, 256.0), (0.8, 512.0), (0.0, 1.0)],
)
def test_scales_are_rounded_down_to_powers_of_two(amax: float, scale: float) -> None:
    """448 / 1 is above 256 and below 512; 448 / 0.8 is 560."""
    assert float(scale_of(torch.tensor(amax), E4M3, power_of_two=True)) == scale


def test_a_number_that_is_none_has_the_scale_1() -> None:
    for amax in (float("inf"), float("nan")):
        assert float(scale_of(torch.tensor(amax), E4M3, power_of_two=False)) == 1.0


def test_tensorwise_by_hand() -> None:
    """The scale is 256: 1.1 x 256 = 281.6 rounds to 288, 0.001 x 256 = 0.256 to 0.25."""
    x = torch.tensor([[1.1, -0.001]])
    along_K, along_T = Tensorwise(E4M3)(x, updates=True)
    assert along_K.tolist() == along_T.tolist() == [[288 / 256, -0.25 / 256]]


def test_a_power_of_two_keeps_a_number_as_it_is_beside_larger_ones() -> None:
    small = torch.tensor([[1.1, 0.7, -0.3]])
    beside = torch.cat([small, torch.full((1, 3), 7.3)])
    quantizer = Tensorwise(E4M3)
    assert torch.equal(quantizer(small, updates=True)[0], quantizer(beside, updates=True)[0][:1])


def numbers(rows: int, columns: int) -> Tensor:
    """Normal ones whose rows and columns differ in size by powers of ten."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(rows, columns, generator=draw)
    return x * torch.logspace(-3, 2, rows)[:, None] * torch.logspace(-2, 1, columns)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_tensorwise_agrees_with_transformer_engine(dtype: torch.dtype) -> None:
    x = numbers(48, 80)
    quantizer = SimpleNamespace(
        dtype=DTYPES[dtype], with_amax_reduction=False, force_pow_2_scales=True, amax_epsilon=0.0,
        amax=torch.zeros(1), scale=torch.ones(1),
    )  # fmt: skip
    out = SimpleNamespace(
        _fp8_dtype=DTYPES[dtype], _data=torch.empty(x.shape, dtype=torch.uint8), _transpose=None,
        _transpose_invalid=True, _scale_inv=torch.empty(1),
    )  # fmt: skip
    quantize._current(x, quantizer, out)
    expected = storage.read(out, rowwise=True, transposed_only=True)
    assert torch.equal(Tensorwise(dtype)(x, updates=True)[0], expected)
    assert (x - expected).abs().max() > 0.0


@pytest.mark.parametrize("square", [False, True])
def test_blockwise_agrees_with_transformer_engine(square: bool) -> None:
    x = numbers(200, 300)
    quantizer = SimpleNamespace(
        dtype=DType.kFloat8E4M3, force_pow_2_scales=True, amax_epsilon=0.0,
        block_scaling_dim=2 if square else 1,
    )  # fmt: skip
    rowwise, columnwise = ((2, 3), (3, 2)) if square else ((3, 200), (2, 300))
    out = SimpleNamespace(
        _fp8_dtype=DType.kFloat8E4M3, _is_2D_scaled=square,
        _rowwise_data=torch.empty(200, 300, dtype=torch.uint8),
        _rowwise_scale_inv=torch.empty(rowwise),
        _columnwise_data=torch.empty(300, 200, dtype=torch.uint8),
        _columnwise_scale_inv=torch.empty(columnwise),
    )  # fmt: skip
    quantize._blockwise(x, quantizer, out)
    found = Blockwise(square=square)(x, updates=True)
    for rowwise_, mine in zip((True, False), found, strict=True):
        assert torch.equal(mine, storage.read(out, rowwise=rowwise_, transposed_only=True))
    assert torch.equal(*found) is square


def test_delayed_agrees_with_transformer_engine() -> None:
    """Passes of growing and falling size, one of them without gradients."""
    scale, history, met = torch.ones(1), torch.zeros(1024, 1), torch.zeros(1)
    mine = Delayed(E4M3, None)
    for size, updates in ((1.0, True), (5.0, False), (0.5, True), (2.0, True), (300.0, True)):
        x = numbers(16, 32) * size
        expected = rounded(x, scale, E4M3)
        met = torch.maximum(met, x.abs().amax())
        if updates:
            quantize.fused_amax_and_scale_update_after_reduction(
                met, [history], [scale], "max", DType.kFloat8E4M3, 0.0
            )
            met = torch.zeros(1)
        assert torch.equal(mine(x, updates=updates)[0], expected)
        assert float(mine.scale) == float(scale)


def test_delayed_scales_by_what_came_before() -> None:
    quantizer = Delayed(E4M3, None)
    x = torch.tensor([[1.1]])
    assert quantizer(x, updates=False)[0].tolist() == [[1.125]]  # no gradients: the scale stays 1
    assert float(quantizer.scale) == 1.0
    quantizer(x, updates=True)
    assert float(quantizer.scale) == pytest.approx(448.0 / 1.1)
    # 448 is the greatest number: one of twice the size is cut to what the history has.
    assert quantizer(2 * x, updates=True)[0].item() == pytest.approx(1.1)
    assert quantizer(2 * x, updates=True)[0].item() == pytest.approx(2.2)
