"""The policy's weights in megatron's distributed format, under any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint.api import CheckpointException

from nemo_gdpo.conversion.formats.dist_reader import check_dist_checkpoint


class HasChunks(Protocol):
    """Whatever holds this rank's part of a model."""

    @property
    def gpt_chunks(self) -> list[GPTModel]:
        """One, or one a virtual pipeline stage."""


SHARDING_METADATA = {
    # Keys name each layer, so that a file can be read without building the model.
    "non_homogeneous_layers": True,
    # The one optimizer layout that loads under another TP and PP.
    "distrib_optim_sharding_type": "fully_reshardable",
}
OPTIMIZER_METADATA = {
    **SHARDING_METADATA,
    # To save, the state is gathered in host memory: by default on every rank, which is 12 bytes a
    # parameter of the rank's shard in each process, though one of them writes it. With this, on
    # that one alone, over gloo: `parallel_state` has to make gloo groups for it. What is written is
    # the same (`sharded_param_state_fully_reshardable` of megatron-core 0.19.2).
    "distrib_optim_fully_reshardable_mem_efficient": True,
}
"""For the optimizer's state; not in the checkpoint, which does not depend on it."""
DIST = "dist"


def sharded_weights(model: HasChunks) -> dict[str, Any]:
    """Sharded tensors of this rank's chunks.

    One entry a virtual stage: their local names repeat, the names on disk do not.
    """
    return {
        f"chunk{index}": chunk.sharded_state_dict(metadata=dict(SHARDING_METADATA))
        for index, chunk in enumerate(model.gpt_chunks)
    }


def fill_weights(model: HasChunks, state: dict[str, Any]) -> None:
    """Put loaded tensors into the model; every parameter must be among them.

    Raises:
        RuntimeError: the tensors are not those of the model.
    """
    for index, chunk in enumerate(model.gpt_chunks):
        missing, unexpected = chunk.load_state_dict(state[f"chunk{index}"], strict=False)
        wrong = [key for key in missing if not key.endswith("_extra_state")] + list(unexpected)
        if wrong:
            raise RuntimeError(f"the checkpoint does not fit the model: {', '.join(wrong[:5])}")


def load_weights(model: HasChunks, checkpoint: Path) -> None:
    """Load the policy's weights from a training checkpoint or a converted model. Collective.

    Raises:
        UserError: the checkpoint is damaged, or could run code.
    """
    check_dist_checkpoint(checkpoint / DIST)
    sharded = {
        # Transformer Engine's scaling state begins afresh with new weights.
        name: {key: value for key, value in part.items() if not key.endswith("_extra_state")}
        for name, part in sharded_weights(model).items()
    }
    loaded = dist_checkpointing.load({"model": sharded}, str(checkpoint / DIST))
    fill_weights(model, loaded["model"])


def save_weights(model: HasChunks, checkpoint: Path) -> None:
    """Write the policy's weights alone to `checkpoint/dist`, which exists. Collective.

    Raises:
        OSError: the disk is full or read-only; or RuntimeError, which is how torch reports that.
    """
    try:
        dist_checkpointing.save(
            {"model": sharded_weights(model)},
            str(checkpoint / DIST),
            content_metadata=dict(SHARDING_METADATA),
        )
    except CheckpointException as error:  # torch's collective writer; it is not an Exception
        causes = [str(cause).splitlines() for cause, _ in error.failures.values()]
        raise RuntimeError(next((lines[0] for lines in causes if lines), "no reason")) from error
