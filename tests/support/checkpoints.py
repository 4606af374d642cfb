"""What a distributed checkpoint holds, read without the model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def stored(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a distributed checkpoint, the optimizer's too."""
    listed = dcp.FileSystemReader(str(path / "dist")).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in listed.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=str(path / "dist"), no_dist=True)
    return state
