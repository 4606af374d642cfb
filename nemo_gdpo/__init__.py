"""Preference alignment on Megatron: GFlowNet-DPO, DPO with an offset, active-query DPO.

    import nemo_gdpo
    from nemo_gdpo import recipes

    result = nemo_gdpo.train(recipes.gdpo("smollm2", "pairs.jsonl", output_dir="runs/gdpo"))

Names are imported when they are first used: checking a configuration loads no torch, and nothing
but training loads megatron.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nemo_gdpo.api import (
        TrainResult,
        compute_reference,
        convert,
        evaluate,
        generate,
        train,
    )
    from nemo_gdpo.config import recipes
    from nemo_gdpo.config.evaluation import EvaluateConfig
    from nemo_gdpo.config.generation import GenerateConfig
    from nemo_gdpo.config.schema import RunConfig
    from nemo_gdpo.errors import RunError, UserError
    from nemo_gdpo.logprobs import selected_logprobs
    from nemo_gdpo.objectives import ADPO, DPO, GDPO, IPO, ODPO, SPL
    from nemo_gdpo.training.run import Run

_PLACES = {
    "nemo_gdpo.api": (
        "TrainResult", "compute_reference", "convert", "evaluate", "generate", "train",
    ),
    "nemo_gdpo.config.evaluation": ("EvaluateConfig",),
    "nemo_gdpo.config.generation": ("GenerateConfig",),
    "nemo_gdpo.config.schema": ("RunConfig",),
    "nemo_gdpo.errors": ("RunError", "UserError"),
    "nemo_gdpo.logprobs": ("selected_logprobs",),
    "nemo_gdpo.objectives": ("ADPO", "DPO", "GDPO", "IPO", "ODPO", "SPL"),
    "nemo_gdpo.training.run": ("Run",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}
_MODULES = {"recipes": "nemo_gdpo.config.recipes"}

__all__ = [
    "ADPO",
    "DPO",
    "GDPO",
    "IPO",
    "ODPO",
    "SPL",
    "EvaluateConfig",
    "GenerateConfig",
    "Run",
    "RunConfig",
    "RunError",
    "TrainResult",
    "UserError",
    "__version__",
    "compute_reference",
    "convert",
    "evaluate",
    "generate",
    "recipes",
    "selected_logprobs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _MODULE_OF:
        return vars(importlib.import_module(_MODULE_OF[name]))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
