"""The policy's weights in megatron's distributed format, under any layout.

A model with adapters has two parts that are never in one checkpoint: the base, which is loaded and
stays as it is, and the adapters, which are all that a training checkpoint holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel

from nemo_gdpo.control import on_every_rank
from nemo_gdpo.control.failure import Wrap
from nemo_gdpo.conversion.adapters import is_of_adapter
from nemo_gdpo.conversion.formats.dist_reader import check_dist_checkpoint
from nemo_gdpo.models.lora import adapters
from nemo_gdpo.models.sharded_save import save_sharded


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
READING = "reading the weights"
"""Stage, as errors name it."""


def _sharded(model: HasChunks, *, of_adapters: bool) -> dict[str, Any]:
    """Sharded tensors of this rank's chunks, of one of both parts.

    One entry a virtual stage: their local names repeat, the names on disk do not.
    """
    return {
        f"chunk{index}": {
            name: value
            for name, value in chunk.sharded_state_dict(metadata=dict(SHARDING_METADATA)).items()
            if is_of_adapter(name) is of_adapters
        }
        for index, chunk in enumerate(model.gpt_chunks)
    }


def trained_weights(model: HasChunks) -> dict[str, Any]:
    """Sharded tensors of what is trained: the adapters, or all weights where there are none."""
    return _sharded(model, of_adapters=any(True for _ in adapters(model.gpt_chunks)))


def fill_weights(model: HasChunks, state: dict[str, Any], *, of_adapters: bool = False) -> None:
    """Put loaded tensors into the model; every parameter of the part must be among them.

    Args:
        model: of this rank.
        state: chunk -> name -> tensor.
        of_adapters: the part: adapters, or all else.

    Raises:
        RuntimeError: the tensors are not those of the model.
    """
    for index, chunk in enumerate(model.gpt_chunks):
        missing, unexpected = chunk.load_state_dict(state[f"chunk{index}"], strict=False)
        wrong = list(unexpected) + [
            key
            for key in missing
            if not key.endswith("_extra_state") and is_of_adapter(key) is of_adapters
        ]
        if wrong:
            raise RuntimeError(f"the checkpoint does not fit the model: {', '.join(wrong[:5])}")


def load_weights(model: HasChunks, checkpoint: Path) -> None:
    """Load the policy's weights from a training checkpoint or a converted model. Collective.

    Raises:
        UserError: on every rank, when the checkpoint is damaged, or could run code.
        RunError: it could not be read.
    """
    on_every_rank(READING, lambda: check_dist_checkpoint(checkpoint / DIST))
    on_every_rank(READING, lambda: _load(model, checkpoint))


def _load(model: HasChunks, checkpoint: Path) -> None:
    sharded = {
        # Transformer Engine's scaling state begins afresh with new weights.
        name: {key: value for key, value in part.items() if not key.endswith("_extra_state")}
        for name, part in _sharded(model, of_adapters=False).items()
    }
    loaded = dist_checkpointing.load({"model": sharded}, str(checkpoint / DIST))
    fill_weights(model, loaded["model"])


def save_weights(model: HasChunks, checkpoint: Path, wrap: Wrap) -> None:
    """Write the weights alone, of a model without adapters, to `checkpoint/dist`. Collective.

    Args:
        model: of this rank.
        checkpoint: to write to; `dist` exists.
        wrap: makes the error that all ranks raise when one cannot write.
    """
    save_sharded(
        lambda: {"model": _sharded(model, of_adapters=False)},
        checkpoint / DIST,
        SHARDING_METADATA,
        wrap,
    )
