"""The number of ranks that a configuration needs, and the hardware that checks know of."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig


@dataclass(frozen=True)
class Hardware:
    """The machine and the world a run would start in, as plain values."""

    world_size: int | None = None
    """Ranks that were started (torchrun, srun); None when none were."""
    gpus: int | None = None
    """GPUs of this node; None when ranks are not tied to GPUs."""
    precisions: frozenset[str] = frozenset({"fp32", "bf16"})
    """Values of `precision` that run here without degrading."""
    precision_reason: str | None = None
    """Why the configured precision is not among them, in the platform's words."""
    layers: str | None = "local"
    """Layers that the configured run would be built of, `"transformer_engine"` or `"local"`; None
    where there are none for it."""
    layers_problem: Problem | None = None
    """Why there are none, in the platform's words."""
    attention_reason: str | None = None
    """Why the configured attention back end cannot run here, in the platform's words."""
    four_bit_reason: str | None = None
    """Why no base can be quantised to four bits here, in the platform's words."""


def model_parallel_size(config: RunConfig) -> int:
    """Ranks that hold one copy of the model: TP x PP x CP."""
    model = config.model
    return (
        model.tensor_model_parallel_size
        * model.pipeline_model_parallel_size
        * model.context_parallel_size
    )


def ranks_per_node(config: RunConfig) -> int:
    """`trainer.devices`, or as many as one copy of the model needs, spread over the nodes."""
    if config.trainer.devices is not None:
        return config.trainer.devices
    return -(-model_parallel_size(config) // config.trainer.num_nodes)


def configured_world_size(config: RunConfig) -> int:
    """Ranks on all nodes, as the configuration says."""
    return ranks_per_node(config) * config.trainer.num_nodes


def data_parallel_size(config: RunConfig, world_size: int) -> int | None:
    """Copies of the model in a world; None when it does not divide evenly."""
    copies, rest = divmod(world_size, model_parallel_size(config))
    return copies if rest == 0 and copies > 0 else None
