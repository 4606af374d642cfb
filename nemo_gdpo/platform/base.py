"""The interface between the application and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

FP8_RECIPES = {
    "fp8_tensorwise": "tensorwise",
    "fp8_blockwise": "blockwise",
    "fp8_mxfp8": "mxfp8",
}
"""Configuration name of an FP8 precision -> Transformer Engine recipe (megatron `fp8_recipe`)."""

TRACKER = "tracker."
"""How a key of `Platform.rng_state` begins that is one of megatron's named states."""


@dataclass(frozen=True)
class Support:
    """Whether this machine has something, and why not."""

    ok: bool
    reason: str = ""
    """Why not, in words that stand alone; empty where `ok`."""


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of this machine. Reading them starts nothing and needs no process group."""

    device_type: str
    """`"cuda"` or `"cpu"`."""
    transformer_engine: bool
    """Transformer Engine imports and there is a GPU for it."""
    apex: bool
    """NVIDIA Apex with its fused optimizers (not the unrelated package of that name) imports."""
    precisions: frozenset[str]
    """Values of the `precision` key that run here without degrading."""
    gradient_fusion: Support = Support(False, "it was not looked for")
    """Weight gradients can be added to the main gradient by the kernel that computes them."""

    def why_not(self, precision: str) -> str | None:
        """The reason why `precision` cannot run here, or None when it can."""
        if precision in self.precisions:
            return None
        if precision not in FP8_RECIPES:
            return f"precision={precision} is not one of {', '.join(sorted(self.precisions))}"
        if self.device_type != "cuda":
            return (
                f"precision={precision} needs a GPU with FP8 tensor cores and Transformer Engine; "
                "this machine has no GPU, and the local layers would train unquantised without a "
                "word"
            )
        if not self.transformer_engine:
            return (
                f"precision={precision} needs Transformer Engine, which does not import here; "
                "install the gpu extra or use the image"
            )
        return f"precision={precision} needs a newer GPU generation than this machine has"


class Platform(Protocol):
    """Everything the application asks of the machine."""

    capabilities: Capabilities
    distributed_backend: str

    def install(self) -> None:
        """Make megatron-core usable here. Idempotent; to be called before megatron imports."""

    def device(self, local_rank: int) -> torch.device:
        """The device that rank `local_rank` of this node computes on (and selects it)."""

    def transformer_config_overrides(self, precision: str, *, interleaved: bool) -> dict[str, Any]:
        """TransformerConfig fields that this machine needs.

        Args:
            precision: value of the `precision` key.
            interleaved: the pipeline has virtual stages.
        """

    def uses_transformer_engine_layers(self) -> bool:
        """True when layers come from Transformer Engine, False for the local ones."""

    def manual_seed(self, seed: int) -> None:
        """Seed Python, NumPy, torch and megatron's model-parallel generators."""

    def rng_state(self) -> dict[str, torch.Tensor]:
        """Every generator that training draws from, as uint8 tensors on the CPU."""

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `rng_state` returned."""

    def peak_memory_bytes(self) -> int:
        """High-water mark of device memory (GPU) or of resident memory (CPU) of this process."""
