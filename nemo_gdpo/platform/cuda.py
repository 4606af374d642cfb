"""The CUDA platform: NCCL, Transformer Engine layers where they are installed, FP8 recipes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from nemo_gdpo.platform.base import FP8_RECIPES, TRACKER, Capabilities


class CudaPlatform:
    """One GPU per rank."""

    distributed_backend = "nccl"

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities

    def install(self) -> None:
        return None

    def device(self, local_rank: int) -> torch.device:
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def transformer_config_overrides(self, precision: str, *, interleaved: bool) -> dict[str, Any]:
        te = self.capabilities.transformer_engine
        overrides: dict[str, Any] = {
            "gradient_accumulation_fusion": self.capabilities.gradient_fusion.ok,
            "bias_activation_fusion": True,
            "bias_dropout_fusion": True,
            "masked_softmax_fusion": False,
            "apply_rope_fusion": te,
            "persist_layer_norm": te,
            "attention_softmax_in_fp32": True,
            "overlap_p2p_comm": interleaved,
            "batch_p2p_comm": not interleaved,
        }
        if precision != "fp32":
            overrides["bf16"] = True
        if precision in FP8_RECIPES:
            # E4M3 forward and E5M2 gradients; blockwise and mxfp8 use E4M3 throughout, as their
            # finer scales make up for the smaller range.
            fine = precision in {"fp8_blockwise", "fp8_mxfp8"}
            overrides |= {
                "fp8": "e4m3" if fine else "hybrid",
                "fp8_recipe": FP8_RECIPES[precision],
                # FP8 fine-tuning is known to miss bf16's loss unless the ends stay in bf16.
                "first_last_layers_bf16": True,
                "num_layers_at_start_in_bf16": 1,
                "num_layers_at_end_in_bf16": 1,
            }
        return overrides

    def uses_transformer_engine_layers(self) -> bool:
        return self.capabilities.transformer_engine

    def manual_seed(self, seed: int) -> None:
        from megatron.core import tensor_parallel

        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(
            seed, te_rng_tracker=self.capabilities.transformer_engine
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
