"""The CUDA platform: NCCL, Transformer Engine layers where they are installed, FP8 recipes."""

from __future__ import annotations

import os
import random
import socket
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nemo_gdpo.errors import UserError
from nemo_gdpo.platform.base import TRACKER, TRANSFORMER_ENGINE, Capabilities
from nemo_gdpo.precisions import FP8_RECIPES, in_fp8

TF32_VARIABLES = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE")
"""NVIDIA's images export the first: torch then multiplies fp32 in TF32 unless it is told otherwise.
The second is read by cuBLAS itself; 0 forbids TF32."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def device_index(local_rank: int, visible: int, environ: Mapping[str, str]) -> int:
    """Which of the visible GPUs a rank takes.

    A launcher that binds a GPU to each task (srun --gpus-per-task=1) shows one to each, and that is
    device 0 whatever the rank is. Whether ranks then share one after all is found out once they can
    talk to each other: `nemo_gdpo.training.mesh.join_world`.

    Args:
        local_rank: number of the rank on its node.
        visible: GPUs that this process can see.
        environ: for the message.

    Raises:
        UserError: there is no GPU for the rank.
    """
    if local_rank < visible:
        return local_rank
    if visible == 1:
        return 0
    seen = f"{_VISIBLE}={environ[_VISIBLE]}" if _VISIBLE in environ else f"{_VISIBLE} is not set"
    raise UserError(
        f"LOCAL_RANK={local_rank}: this process can see {visible} GPUs ({seen}), and none is left "
        "for it; start no more ranks on a node than it has GPUs, or show each rank its own "
        "(srun --gpus-per-task=1)"
    )


def _fp8(precision: str) -> dict[str, Any]:
    # E4M3 forward and E5M2 gradients; blockwise and mxfp8 use E4M3 throughout, as their finer
    # scales make up for the smaller range.
    fine = precision in {"fp8_blockwise", "fp8_mxfp8"}
    return {
        "fp8": "e4m3" if fine else "hybrid",
        "fp8_recipe": FP8_RECIPES[precision],
        # FP8 fine-tuning is known to miss bf16's loss unless the ends stay in bf16.
        "first_last_layers_bf16": True,
        "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 1,
    }


def _round_scales_to_powers_of_two() -> None:
    """Make the recipe of `fp8_tensorwise` round each number by itself.

    One scale serves a whole tensor, and is the largest of it. Any other factor than a power of two
    moves the grid that all the others are rounded to, so that a pair's log-probs would depend on
    the pairs beside it: a cached reference, which had others, differed from its own policy by the
    whole rounding error of FP8. A power of two moves nothing but the ends of the range.
    """
    from transformer_engine.common.recipe import Float8CurrentScaling, QParams

    # What NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES=1 does, which is read when it is imported.
    scale = QParams(power_2_scale=True, amax_epsilon=0.0)
    Float8CurrentScaling.fp8_quant_fwd_inp = scale
    Float8CurrentScaling.fp8_quant_fwd_weight = scale
    Float8CurrentScaling.fp8_quant_bwd_grad = scale


class CudaPlatform:
    """One GPU per rank."""

    distributed_backend = "nccl"

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities

    def install(self) -> None:
        # The other way to tell NCCL its device, `init_process_group(device_id=...)`, is the one
        # that hangs (see `join_world`); the device is set before the first collective.
        warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current")
        if self.capabilities.transformer_engine.ok:
            _round_scales_to_powers_of_two()

    def device(self, local_rank: int) -> torch.device:
        index = device_index(local_rank, torch.cuda.device_count(), os.environ)
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def device_identity(self) -> str | None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{properties.name} {properties.uuid} on {socket.gethostname()}"

    def device_name(self) -> str:
        return str(torch.cuda.get_device_properties(torch.cuda.current_device()).name)

    def settle_arithmetic(self) -> list[str]:
        # In every precision: what is left in fp32 is what needs its bits.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        exported = [name for name in TF32_VARIABLES if os.environ.get(name, "0") not in ("", "0")]
        told = "is not followed: fp32 is multiplied in fp32, not in TF32"
        return [f"{name}={os.environ.pop(name)} {told}" for name in exported]

    def transformer_config_overrides(
        self, precision: str, *, interleaved: bool, layers: str
    ) -> dict[str, Any]:
        te = layers == TRANSFORMER_ENGINE
        overrides: dict[str, Any] = {
            "gradient_accumulation_fusion": (
                # In fp32 autograd adds in fp32 as well, by the plainest of ways.
                self.capabilities.gradient_fusion.ok and precision != "fp32"
            ),
            "bias_activation_fusion": True,
            "bias_dropout_fusion": True,
            "apply_rope_fusion": te,
            "overlap_p2p_comm": interleaved,
            "batch_p2p_comm": not interleaved,
        }
        if precision != "fp32":
            overrides["bf16"] = True
        if in_fp8(precision):
            overrides |= _fp8(precision)
        return overrides

    def manual_seed(self, seed: int) -> None:
        from megatron.core import tensor_parallel

        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(
            seed, te_rng_tracker=self.capabilities.transformer_engine.ok
        )

    def rng_state(self) -> dict[str, torch.Tensor]:
        from megatron.core.tensor_parallel import convert_cuda_rng_state, get_cuda_rng_tracker

        # Transformer Engine's tracker holds generators, megatron's own the bytes of their states;
        # both are saved as bytes, as megatron's own checkpoints have them.
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(),
            **{
                f"{TRACKER}{name}": convert_cuda_rng_state(state, to_graphable=False).cpu()
                for name, state in get_cuda_rng_tracker().get_states().items()
            },
        }

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        from megatron.core.tensor_parallel import convert_cuda_rng_state, get_cuda_rng_tracker

        torch.set_rng_state(state["torch"])
        torch.cuda.set_rng_state(state["cuda"])
        tracker = get_cuda_rng_tracker()
        generators = any(isinstance(s, torch.Generator) for s in tracker.get_states().values())
        tracker.set_states(
            {
                key.removeprefix(TRACKER): convert_cuda_rng_state(saved, to_graphable=generators)
                for key, saved in state.items()
                if key.startswith(TRACKER)
            }
        )

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()
