"""Compares two checkpoints, of either kind, tensor by tensor under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_gdpo.conversion.engine import Slot, slots_of
from nemo_gdpo.conversion.families import read_hf_config
from nemo_gdpo.conversion.formats.hf_source import open_hf
from nemo_gdpo.conversion.formats.megatron_io import is_megatron_checkpoint, open_megatron
from nemo_gdpo.conversion.layouts import split
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.progress import progress_bar

Reader = Callable[[Slot], list[Tensor]]


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is not the same in both."""

    name: str
    reason: str
    max_abs_difference: float | None
    """None where the shapes differ, or where one side has a NaN."""

    def line(self) -> str:
        """What differs, for people."""
        largest = self.max_abs_difference
        return f"{self.name} differs: {self.reason}" + (
            "" if largest is None else f", up to {largest:.3g}"
        )


@dataclass(frozen=True)
class VerifyReport:
    """What a comparison found."""

    tensors: int
    """How many were compared."""
    config_differences: tuple[str, ...]
    """One line for each field of the architecture that differs."""
    differences: tuple[TensorDifference, ...]

    @property
    def same(self) -> bool:
        """Same architecture, and every tensor has the same type, shape and bits."""
        return not self.config_differences and not self.differences

    def to_dict(self) -> dict[str, object]:
        """A JSON object."""
        return {"same": self.same, **asdict(self)}


def _open(path: Path) -> tuple[MegatronModelConfig, Reader]:
    if is_megatron_checkpoint(path):
        model, weights = open_megatron(path)
        config = model.config
        return config, lambda slot: split(slot.entry, weights.tensor(slot.name), config)
    config = read_hf_config(path)
    source = open_hf(path, config)
    return config, lambda slot: [source.tensor(name) for name in slot.hf_names]


def _compare(name: str, a: Tensor, b: Tensor) -> TensorDifference | None:
    if a.shape != b.shape:
        return TensorDifference(name, f"shape {list(a.shape)} and {list(b.shape)}", None)
    same_bits = torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )
    if a.dtype == b.dtype and same_bits:
        return None
    largest = (a.double() - b.double()).abs().max().item()
    reason = f"type {a.dtype} and {b.dtype}" if a.dtype != b.dtype else "values"
    return TensorDifference(name, reason, None if largest != largest else largest)


def verify(first: Path, second: Path, *, progress: bool = False) -> VerifyReport:
    """Compare two checkpoints: Hugging Face or Megatron, each.

    Raises:
        UserError: one of them is incomplete or damaged.
    """
    (config, read_first), (other, read_second) = _open(first), _open(second)
    mine, theirs = config.to_dict(), other.to_dict()
    unlike = tuple(
        f"{name}: {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]
    )
    if config.num_layers != other.num_layers or config.family != other.family:
        return VerifyReport(0, unlike, ())
    differences: list[TensorDifference] = []
    count = 0
    slots = {slot.name for slot in slots_of(other)}
    common = [slot for slot in slots_of(config) if slot.name in slots]
    for slot in progress_bar(
        common, total=len(common), unit="tensor", label="verify", enabled=progress
    ):
        pairs = zip(slot.hf_names, read_first(slot), read_second(slot), strict=True)
        for name, a, b in pairs:
            count += 1
            difference = _compare(name, a, b)
            if difference is not None:
                differences.append(difference)
    return VerifyReport(count, unlike, tuple(differences))
