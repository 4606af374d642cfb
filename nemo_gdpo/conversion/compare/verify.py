"""Compares two checkpoints, of either kind, tensor by tensor under Hugging Face's names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_gdpo.conversion.compare.view import CheckpointView, view_directory
from nemo_gdpo.progress import progress_bar


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is not the same in both."""

    name: str
    reason: str
    max_abs_difference: float | None
    """None where the shapes differ, or where one of them has a NaN."""

    def line(self) -> str:
        """One line that says what differs."""
        largest = self.max_abs_difference
        return f"{self.name} differs: {self.reason}" + (
            "" if largest is None else f", up to {largest:.3g}"
        )


@dataclass(frozen=True)
class VerifyReport:
    """Result of a comparison of two checkpoints."""

    tensors: int
    """Number of tensors compared."""
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
    return verify_views(view_directory(first), view_directory(second), progress=progress)


def verify_views(
    first: CheckpointView, second: CheckpointView, *, progress: bool = False
) -> VerifyReport:
    """Compare the tensors of two checkpoints.

    Raises:
        UserError: one of them is incomplete or damaged.
    """
    config, other = first.bridge.config, second.bridge.config
    read_first, read_second = first.reader(), second.reader()
    mine, theirs = config.to_dict(), other.to_dict()
    unlike = tuple(
        f"{name}: {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]
    )
    if config.num_layers != other.num_layers or config.family != other.family:
        return VerifyReport(0, unlike, ())
    differences: list[TensorDifference] = []
    count = 0
    common = [mapping for mapping in first.bridge.mappings if mapping.name in second.bridge.by_name]
    for mapping in progress_bar(
        common, total=len(common), unit="tensor", label="verify", enabled=progress
    ):
        pairs = zip(mapping.hf_names, read_first(mapping), read_second(mapping), strict=True)
        for name, a, b in pairs:
            count += 1
            difference = _compare(name, a, b)
            if difference is not None:
                differences.append(difference)
    return VerifyReport(count, unlike, tuple(differences))
