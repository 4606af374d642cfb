"""The stand-in for the compiled module by itself, against plain torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.gpu_path.compiled import layers, optimizer, quantize, storage
from tests.gpu_path.compiled.enums import DType
from tests.gpu_path.compiled.gemm import check_shape

DRAW = torch.Generator().manual_seed(5)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64).float()


@pytest.mark.parametrize("zero_centered", [False, True])
def test_rmsnorm(zero_centered: bool) -> None:
    x, weight, grad = drawn(5, 16), drawn(16), drawn(5, 16)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    gain = leaves[1] + (1.0 if zero_centered else 0.0)
    wanted = leaves[0] * torch.rsqrt(leaves[0].pow(2).mean(-1, keepdim=True) + 1e-5) * gain
    wanted.backward(grad)  # type: ignore[no-untyped-call]
    y, _, rsigma = layers.rmsnorm_fwd(x, weight, 1e-5, None, None, DType.kFloat32, 0, zero_centered)
    dx, dweight = layers.rmsnorm_bwd(grad, x, rsigma, weight, 0, zero_centered)
    torch.testing.assert_close(y, wanted.detach())
    torch.testing.assert_close(dx, leaves[0].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dweight, leaves[1].grad, rtol=1e-4, atol=1e-5)


def angles(length: int, width: int) -> Tensor:
    half = torch.outer(torch.arange(float(length)), 10.0 ** -torch.arange(width // 2))
    return torch.cat((half, half), dim=-1)[:, None, None, :]


def rope(x: Tensor, freqs: Tensor, bounds: Tensor | None = None) -> Tensor:
    return layers.fused_rope_forward(x, freqs, None, 0, False, bounds, 1, 0)


def test_rope_turns_pairs_of_halves_and_its_backward_turns_back() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 2.0])[None, None, None].repeat(3, 1, 1, 1)
    freqs = torch.tensor([torch.pi / 2, 0.0]).repeat(2)[None, None, None]
    turned = rope(x[:1], freqs)
    # The first pair (1, 0) by a quarter turn, the second (0, 2) not at all.
    assert turned.flatten().tolist() == pytest.approx([0.0, 0.0, 1.0, 2.0], abs=1e-6)
    y, freqs = drawn(6, 2, 3, 8), angles(6, 4)  # the last four dimensions are passed on
    back = layers.fused_rope_backward(rope(y, freqs), freqs, None, 0, False, None, 1, 0)
    torch.testing.assert_close(back, y)
    assert torch.equal(rope(y, freqs)[..., 4:], y[..., 4:])


def test_rope_begins_anew_with_every_packed_sequence() -> None:
    x, freqs = drawn(7, 2, 4), angles(5, 4)
    bounds = torch.tensor([0, 3, 7])
    packed = rope(x, freqs, bounds)
    for start, stop in ((0, 3), (3, 7)):
        alone = rope(x[start:stop, None], freqs)[:, 0]
        torch.testing.assert_close(packed[start:stop], alone)


def test_packed_rows_there_and_back() -> None:
    x, bounds = drawn(7, 2, 4), torch.tensor([0, 3, 7])
    padded = layers.convert_thd_to_bshd(x, bounds, 2, 5)
    assert padded.shape == (2, 5, 2, 4) and not padded[0, 3:].any() and not padded[1, 4:].any()
    assert torch.equal(layers.convert_bshd_to_thd(padded, bounds, 7), x)


def test_adam_is_torchs() -> None:
    parameter = torch.nn.Parameter(drawn(4, 4))
    mine, first, second = parameter.detach().clone(), torch.zeros(4, 4), torch.zeros(4, 4)
    theirs = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.3)
    for step in (1, 2, 3):
        parameter.grad = drawn(4, 4)
        lists = [[parameter.grad], [mine], [first], [second]]
        optimizer.multi_tensor_adam(1, torch.zeros(1), lists, 0.1, 0.9, 0.95, 1e-6, step, 1, 1, 0.3)
        theirs.step()
    torch.testing.assert_close(mine, parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "outer_a", "outer_b", "inner", "wrong"),
    [
        ("tensor", 8, 1, 16, None),
        ("tensor", 8, 1, 24, "inner one must be a multiple of 16"),
        ("tensor", 4, 1, 16, "a row of the result must be a multiple of 16 bytes"),
        ("block", 8, 8, 16, None),
        ("block", 8, 4, 16, "the outer ones must be multiples of 8"),
        ("mx", 32, 32, 32, None),
        ("mx", 32, 32, 48, "inner one must be a multiple of 32"),
    ],
)
def test_shapes_of_fp8_products(
    kind: str, outer_a: int, outer_b: int, inner: int, wrong: str | None
) -> None:
    if wrong is None:
        check_shape(kind, outer_a, outer_b, inner, out_bytes=2)
    else:
        with pytest.raises(RuntimeError, match=f"Caller must pad.*{wrong}"):
            check_shape(kind, outer_a, outer_b, inner, out_bytes=2)


def test_microscaling_by_hand() -> None:
    """448 x 2**-3 and its block need the exponent -3; the next block, all of zeros, the least."""
    x = torch.zeros(32, 64)
    x[0, 0], x[0, 1] = 56.0, 1.0
    quantizer = SimpleNamespace(dtype=DType.kFloat8E4M3)
    out = SimpleNamespace(
        _fp8_dtype=DType.kFloat8E4M3,
        _with_gemm_swizzled_scales=False,
        _rowwise_data=torch.empty(32, 64, dtype=torch.uint8),
        _rowwise_scale_inv=torch.empty(128, 4, dtype=torch.uint8),
        _columnwise_data=torch.empty(32, 64, dtype=torch.uint8),
        _columnwise_scale_inv=torch.empty(4, 128, dtype=torch.uint8),
    )
    quantize._microscaling(x, quantizer, out)
    assert out._rowwise_scale_inv[0].tolist() == [127 - 3, 0, 0, 0]
    assert out._columnwise_scale_inv[0, :3].tolist() == [127 - 3, 127 - 8, 0]
    for rowwise in (True, False):
        assert torch.equal(storage.read(out, rowwise=rowwise, transposed_only=True), x)


@pytest.mark.parametrize("squares", [False, True])
def test_blocks_have_scales_of_their_own(squares: bool) -> None:
    """1 beside 1000 is lost in one scale of FP8, not in two."""
    x = torch.full((3, 130), 1e-4)
    x[:, 128:] = 1000.0
    quantizer = SimpleNamespace(
        dtype=DType.kFloat8E4M3,
        force_pow_2_scales=True,
        amax_epsilon=0.0,
        block_scaling_dim=2 if squares else 1,
    )
    rowwise, columnwise = ((1, 4), (2, 4)) if squares else ((2, 4), (1, 132))
    out = SimpleNamespace(
        _fp8_dtype=DType.kFloat8E4M3,
        _is_2D_scaled=squares,
        _rowwise_data=torch.empty(3, 130, dtype=torch.uint8),
        _rowwise_scale_inv=torch.empty(rowwise),
        _columnwise_data=torch.empty(130, 3, dtype=torch.uint8),
        _columnwise_scale_inv=torch.empty(columnwise),
    )
    quantize._blockwise(x, quantizer, out)
    for along_rows in (True, False):
        back = storage.read(out, rowwise=along_rows, transposed_only=True)
        torch.testing.assert_close(back, x, rtol=2**-4, atol=0.0)


def test_what_was_not_quantised_for_a_product_cannot_be_read() -> None:
    half = SimpleNamespace(
        _fp8_dtype=DType.kFloat8E4M3,
        _data=torch.zeros(16, 16, dtype=torch.uint8),
        _transpose=None,
        _transpose_invalid=True,
        _scale_inv=torch.ones(1),
    )
    assert storage.read(half, rowwise=True, transposed_only=True).shape == (16, 16)
    with pytest.raises(RuntimeError, match="missing column-wise usage"):
        storage.read(half, rowwise=False, transposed_only=True)
    # Blackwell takes operands along either dimension.
    assert storage.read(half, rowwise=False, transposed_only=False).shape == (16, 16)
