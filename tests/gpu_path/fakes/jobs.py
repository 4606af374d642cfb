"""What to rehearse: plain data, for the process that does it and for those that ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """A rank of an experiment."""

    experiment: str
    """Name of a preset."""
    rank: int
    precision: str = "bf16"
    layers: int = 32
    """Of the model; all else is as it is."""
    overrides: tuple[str, ...] = ()
    micro_batches: int = 2
    """Of this rank in an update; 0 builds the model and the optimizer only."""
    steps: int = 1
    """Updates. Megatron overlaps the reduction of gradients from the second on."""
    apex: bool = False
    """NVIDIA Apex is there, and with it the kernel that adds weight gradients where they belong."""

    @classmethod
    def read(cls, values: dict[str, Any]) -> Job:
        """From JSON, which has no tuples."""
        return cls(**{**values, "overrides": tuple(values["overrides"])})
