"""Stand-in for Transformer Engine's compiled module, in plain torch on the CPU.

Transformer Engine is a Python layer over `transformer_engine_torch`, which holds the CUDA kernels.
Here is what a dense GPT of megatron asks of it: matrix products with their FP8 shape rules,
quantisation of every recipe in the real storage formats, RMSNorm, rotary embeddings, Adam.
Everything else has its name and raises when it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.gpu_path.compiled import enums, facts, gemm, layers, optimizer, quantize

NAME = "transformer_engine_torch"
_PARTS = (facts, gemm, layers, optimizer, quantize)


def _missing(name: str) -> Callable[..., Any]:
    def raise_(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{NAME}.{name} is not in the stand-in")

    return raise_


def _named_in(source: str) -> set[str]:
    """Names of the compiled module that a Python file of Transformer Engine uses."""
    found = set(re.findall(r"\btex\.([A-Za-z]\w*)", source))
    for names in re.findall(
        r"^from transformer_engine_torch import (\([^)]*\)|[\w, ]+)", source, re.MULTILINE
    ):
        found |= {name.split(" as ")[0].strip() for name in names.strip("()").split(",")}
    return found - {""}


def build(tree: Path) -> ModuleType:
    """The module for the Python layer in `tree`, the folder that holds `transformer_engine`."""
    sources = [p.read_text() for p in sorted((tree / "transformer_engine/pytorch").rglob("*.py"))]
    module = ModuleType(NAME, __doc__)
    contents: dict[str, Any] = dict(enums.all_of(sources))
    for part in _PARTS:
        contents |= {name: getattr(part, name) for name in part.EXPORTED}
    for name in set().union(*map(_named_in, sources)) - contents.keys():
        contents[name] = _missing(name)
    vars(module).update(contents, __all__=sorted(contents))
    return module
