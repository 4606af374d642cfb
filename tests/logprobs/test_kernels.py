"""What the interpreter cannot show: every kernel compiles for every GPU, and moves whole vectors.

Triton compiles for a GPU that is not there; its wheel brings the assembler.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nemo_gdpo.logprobs import kernels
from nemo_gdpo.logprobs.products import add_product, product

SINGLES = ("tile", "highest", "total", "tempered_total", "label_logit", "eos_logit")
TYPES = {
    **dict.fromkeys((*SINGLES, "log_sum_exp", "grad_total", "factor"), "*fp32"),
    **dict.fromkeys(("grad", "hidden"), "*bf16"),
    **dict.fromkeys(("labels", "order", "rows"), "*i64"),
    **dict.fromkeys(("softcap", "inverse_temperature"), "fp32"),
    **dict.fromkeys(("first_id", "eos_id", "columns", "stride", "grad_stride"), "i32"),
    **dict.fromkeys(("first_row", "end_row", "tokens", "width"), "i32"),
}
ALIGNED = ("tile", "grad", "hidden", "total", "columns", "stride", "grad_stride", "width")
"""Addresses and sizes in multiples of 16: Triton looks at their values at each start."""
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "score": (kernels.score, {"CAPPED": False, "TEMPERED": False, "BLOCK": 4096}),
    "score, all": (kernels.score, {"CAPPED": True, "TEMPERED": True, "BLOCK": 4096}),
    "gradient": (kernels.gradient, {"CAPPED": False, "BLOCK": 2048}),
    "gradient, soft-cap": (kernels.gradient, {"CAPPED": True, "BLOCK": 2048}),
    "rows": (kernels.add_rows, {"BLOCK": 4096}),
}


@pytest.fixture(autouse=True)
def _compiled_anew(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(name: str, capability: int, *, aligned: bool) -> Any:
    kernel, constants = VARIANTS[name]
    types = {a: "constexpr" if a in constants else TYPES[a] for a in kernel.arg_names}
    known = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if aligned and argument in ALIGNED
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=known)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_compiles_for_every_gpu(name: str, capability: int, aligned: bool) -> None:
    """A100, H100 and B200; sizes in multiples of 16, and the odd ones of a last strip."""
    assert compiled(name, capability, aligned=aligned).asm["cubin"]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_moves_whole_vectors(name: str) -> None:
    """16 bytes a load: one number at a time would not reach the memory's bandwidth.

    A mask whose bound is not known to be a multiple of 16 is enough to lose that.
    """
    assembly = compiled(name, 90, aligned=True).asm["ptx"]
    assert re.search(r"ld\.global\.v4\.b32", assembly)
    if "gradient" in name:
        assert re.search(r"st\.global\.v4\.b32", assembly)
        # Rounded to the nearest, as the bound on the gradient's error has it.
        assert "cvt.rn.bf16" in assembly


@pytest.mark.parametrize("kernel", [kernels.score, kernels.gradient, kernels.add_rows])
def test_another_number_of_tokens_compiles_nothing(kernel: Any) -> None:
    """Neither the number nor where a row of numbers begins is part of what a kernel is kept by.

    Of a tile and its gradient it is: their rows begin at multiples of 256 bytes.
    """
    apart = {"first_id", "eos_id", "first_row", "end_row", "tokens"}
    for parameter in kernel.params:
        pointer = TYPES.get(parameter.name, "").startswith("*")
        if parameter.name in apart:
            assert parameter.do_not_specialize, parameter.name
        elif pointer and parameter.name not in ("tile", "grad", "hidden"):
            shared = kernel is kernels.add_rows and parameter.name == "total"
            assert parameter.do_not_specialize_on_alignment != shared, parameter.name


class Calls(TorchDispatchMode):
    """Which operation each call comes down to, without carrying it out."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "out" not in (kwargs or {}):
            return func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs))
        return kwargs["out"]


def test_products_ask_a_gpu_for_float32() -> None:
    """The operations that a GPU has for it, written in place; a sum is given what it adds to."""
    left = torch.empty(4, 8, dtype=torch.bfloat16, device="meta")
    right = torch.empty(8, 6, dtype=torch.bfloat16, device="meta")
    out = torch.empty(4, 6, device="meta")
    with Calls() as calls:
        product(left, right, out_MN=out)
        add_product(out, left, right)
    (first, first_args, first_named), (second, second_args, second_named) = calls.made
    assert first == torch.ops.aten.mm.dtype_out
    assert first_args == (left, right, torch.float32)
    assert first_named["out"] is out
    assert second == torch.ops.aten.baddbmm.dtype_out
    assert second_args[0] is second_named["out"]
    assert second_args[0]._base is out
    assert [a.dtype for a in second_args[1:3]] == [torch.bfloat16] * 2
    assert second_args[3] == torch.float32


@pytest.mark.parametrize("strided", [False, True])
def test_products_sum_in_float32(strided: bool) -> None:
    """256 + 1 + ... + 1: in bfloat16 the ones would be lost, 257 being no number there."""
    left = torch.ones(1, 257, dtype=torch.bfloat16)
    left[0, 0] = 256.0
    right = torch.ones(257, 2, dtype=torch.bfloat16)
    out = torch.zeros(3, 4)[1:2, :2] if strided else torch.zeros(1, 2)
    product(left, right, out_MN=out)
    assert out.tolist() == [[512.0, 512.0]]
    add_product(out, left, right)
    assert out.tolist() == [[1024.0, 1024.0]]
