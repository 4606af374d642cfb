"""The interface between the application and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.precisions import arithmetic

TRANSFORMER_ENGINE = "transformer_engine"
LOCAL = "local"
TRACKER = "tracker."
"""How a key of `Platform.rng_state` begins that is one of megatron's named states."""


@dataclass(frozen=True)
class Support:
    """Whether this machine has something, and why not."""

    ok: bool
    reason: str = ""
    """Why not, in words that stand alone; empty where `ok`."""


@dataclass(frozen=True)
class Finding:
    """What would be used here, and why that."""

    value: str
    reason: str = ""
    """Why not something better; empty where there is nothing better."""


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of this machine. Reading them starts nothing and needs no process group."""

    device_type: str
    """`"cuda"` or `"cpu"`."""
    transformer_engine: Support
    """Transformer Engine's layers can be used."""
    precision_support: Mapping[str, Support]
    """Value of the `precision` key -> whether it runs here without degrading."""
    attention: Mapping[str, Support]
    """Value of `model.attention_backend` but auto -> whether it can be had here."""
    gradient_fusion: Support
    """Weight gradients can be added to the main gradient by the kernel that computes them."""
    four_bit: Support
    """A frozen base can be kept in NF4."""
    optimizer: Finding
    """Whose Adam megatron-core takes."""
    unusable: Problem | None = None
    """Why nothing can be trained in this environment before it is repaired; None where it can."""

    @property
    def precisions(self) -> frozenset[str]:
        """Values of the `precision` key that run here without degrading."""
        return frozenset(name for name, found in self.precision_support.items() if found.ok)

    def why_not(self, precision: str) -> str | None:
        """The reason why `precision` cannot run here, or None when it can."""
        found = self.precision_support.get(arithmetic(precision))
        if found is None:
            return f"precision={precision} is not one of {', '.join(sorted(self.precisions))}"
        return None if found.ok else f"precision={precision} {found.reason}"


class Platform(Protocol):
    """Everything the application asks of the machine."""

    capabilities: Capabilities
    distributed_backend: str

    def install(self) -> None:
        """Make megatron-core usable here. Idempotent; to be called before megatron imports."""

    def device(self, local_rank: int) -> torch.device:
        """The device that rank `local_rank` of this node computes on (and selects it).

        Raises:
            UserError: there is none for it.
        """

    def device_identity(self) -> str | None:
        """Name of the selected device that no other has anywhere; None where ranks may share."""

    def device_name(self) -> str:
        """What the selected device calls itself; `cpu` for a processor."""

    def settle_arithmetic(self) -> list[str]:
        """Switch off what would compute fp32 with fewer bits; lines for the user, often none."""

    def transformer_config_overrides(
        self, precision: str, *, interleaved: bool, layers: str
    ) -> dict[str, Any]:
        """TransformerConfig fields that this machine needs.

        Args:
            precision: value of the `precision` key.
            interleaved: the pipeline has virtual stages.
            layers: `"transformer_engine"` or `"local"`, see `nemo_gdpo.platform.layers`.
        """

    def manual_seed(self, seed: int) -> None:
        """Seed Python, NumPy, torch and megatron's model-parallel generators."""

    def rng_state(self) -> dict[str, torch.Tensor]:
        """Every generator that training draws from, as uint8 tensors on the CPU."""

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `rng_state` returned."""

    def peak_memory_bytes(self) -> int:
        """High-water mark of device memory (GPU) or of resident memory (CPU) of this process."""
