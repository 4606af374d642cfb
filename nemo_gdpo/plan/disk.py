"""Bytes on disk: checkpoints, the reference's cache, the export."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_gdpo.plan.adapters import Adapters
from nemo_gdpo.plan.shape import Shape


@dataclass(frozen=True)
class Disk:
    """Bytes of a run's output."""

    checkpoint: float
    room: float
    """What checkpoints need at most: one more than are kept."""
    reference: float
    export: float
    """Hugging Face weights; adapters are merged."""
    adapter: float
    """PEFT's weights."""


def disk_of(
    shape: Shape,
    *,
    adapters: Adapters | None = None,
    precision: str,
    distributed_optimizer: bool,
    kept: int,
    labels: float,
    columns: int,
) -> Disk:
    """What a run writes; docs/checkpoints.md has the bytes a parameter.

    Args:
        shape: of the model.
        adapters: what is trained, and all that a checkpoint holds; None: the model.
        precision: value of the key.
        distributed_optimizer: whether states are shared out.
        kept: `trainer.keep_checkpoints`.
        labels: response tokens of all pairs; 0 without a cache.
        columns: numbers of the cache for each, of 4 bytes.
    """
    wide = precision == "fp32"
    each = (16 if distributed_optimizer else 12) if wide else 14
    width = 4 if wide else 2
    adapted = shape.layers * adapters.parameters(shape, 1) if adapters else 0
    checkpoint = float(each * (adapted or shape.parameters))
    return Disk(
        checkpoint=checkpoint,
        room=checkpoint * (kept + 1),
        reference=4.0 * columns * labels,
        export=float(width * shape.parameters),
        adapter=float(width * adapted),
    )
