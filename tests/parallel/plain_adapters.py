"""Adapters written out on a transformers model: no megatron and no PEFT, a sum in each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nemo_gdpo.config.lora import TARGETS
from tests.parallel.settings import ALPHA, RANK, adapter


class Summed(nn.Module):
    """A frozen linear layer, and alpha / rank times B A beside it."""

    def __init__(self, linear: nn.Linear, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A = nn.Parameter(values["lora_A"])
        self.lora_B = nn.Parameter(values["lora_B"])

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) + ALPHA / RANK * (x @ self.lora_A.T @ self.lora_B.T)


def adapt(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Put the adapters of the tests in; PEFT's name -> the parameter. All else is frozen."""
    model.requires_grad_(False)
    found: dict[str, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        parent, _, target = name.rpartition(".")
        if target not in TARGETS:
            continue
        assert isinstance(module, nn.Linear)
        layer = int(name.split(".")[2])
        values = adapter(layer, target, module.out_features, module.in_features)
        summed = Summed(module, values)
        setattr(model.get_submodule(parent), target, summed)
        for matrix in ("lora_A", "lora_B"):
            found[f"base_model.model.{name}.{matrix}.weight"] = summed.get_parameter(matrix)
    assert torch.is_grad_enabled()
    return found
