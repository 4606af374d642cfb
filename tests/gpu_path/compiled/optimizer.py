"""Adam, norms and scaling over lists of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.gpu_path.compiled.calls import counted

EXPORTED = ("multi_tensor_adam", "multi_tensor_l2norm", "multi_tensor_scale")


@counted
def multi_tensor_adam(
    chunk_size: int,
    noop: Tensor,
    lists: list[list[Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decoupled: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """One step in place over (gradients, parameters, first, second moments), all float32."""
    del chunk_size, noop
    gradients, parameters, firsts, seconds = lists
    correct1 = 1 - beta1**step if bias_correction else 1.0
    correct2 = 1 - beta2**step if bias_correction else 1.0
    for gradient, parameter, first, second in zip(
        gradients, parameters, firsts, seconds, strict=True
    ):
        if not decoupled:
            gradient = gradient + weight_decay * parameter
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = (first / correct1) / ((second / correct2).sqrt() + eps)
        if decoupled:
            update = update + weight_decay * parameter
        parameter.sub_(lr * update)


@counted
def multi_tensor_scale(
    chunk_size: int, noop: Tensor, lists: list[list[Tensor]], scale: float
) -> None:
    """Second list = first list x scale."""
    del chunk_size, noop
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)


@counted
def multi_tensor_l2norm(
    chunk_size: int, noop: Tensor, lists: list[list[Tensor]], per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    """(norm of all [1], norm of each)."""
    del chunk_size, noop
    norms = [x.float().norm() for x in lists[0]]
    each = torch.stack(norms) if norms else torch.zeros(1)
    return each.norm().reshape(1), each if per_tensor else torch.zeros(1)
