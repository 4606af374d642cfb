"""The weight's gradient where Megatron's DDP keeps it: a float32 buffer that lives with the weight.

Adding to it directly saves a [V, H] matrix for every backward pass, and rounds nothing.

The contract is that of megatron-core 0.19's `LinearWithGradAccumulationAndAsyncCommunication`
(tensor_parallel/layers.py) and of DDP's backward hook (distributed/distributed_data_parallel.py):

- DDP gives each parameter that it reduces `main_grad` and `grad_added_to_main_grad`, false at the
  start of each step.
- Whoever adds to `main_grad` sets the flag; the hook, which runs once the parameter's gradient of a
  backward pass is complete, then does not add `grad`, drops it, and counts the parameter as ready
  to be reduced.
- Autograd still has to be handed a tensor on the weight's device: for None the hook would run on
  another thread, and out of step with the other ranks' collectives.
- A weight that is the embedding too, on one pipeline stage, has `zero_out_wgrad`: autograd adds
  the embedding's gradient to the tensor, and the hook adds the sum to `main_grad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MainGrad:
    """A weight and its buffer."""

    weight: Any
    total_VH: Tensor
    """float32; gradients are added to what is there."""

    @classmethod
    def of(cls, weight: Tensor) -> MainGrad | None:
        """The buffer of a weight that DDP reduces in float32; None for any other."""
        given = vars(weight)
        total_VH = given.get("main_grad")
        if "grad_added_to_main_grad" not in given or total_VH is None:
            return None
        return cls(weight, total_VH) if total_VH.dtype == torch.float32 else None

    def added(self) -> Tensor:
        """Say that this backward pass's gradient is in the buffer.

        Returns:
            What autograd is to be handed in the gradient's place, in the weight's type: zeros where
            another gradient comes on top, otherwise numbers without meaning, which the hook throws
            away at once. Neither takes memory: one zero repeated, the buffer's own bytes.

        Raises:
            RuntimeError: the weight has a gradient beside the buffer, to which autograd would add.
        """
        if self.weight.grad is not None:
            raise RuntimeError(
                "the head's weight has a gradient beside its main gradient, which DDP's hook has "
                "not dropped; run backward passes under the DDP that made the main gradient"
            )
        self.weight.grad_added_to_main_grad = True
        weight_VH: Tensor = self.weight.detach()
        if vars(self.weight).get("zero_out_wgrad", False):
            return weight_VH.new_zeros(()).expand(weight_VH.shape)
        bytes_ = self.total_VH.detach().view(-1).view(weight_VH.dtype)
        return bytes_[: weight_VH.numel()].view(weight_VH.shape)
