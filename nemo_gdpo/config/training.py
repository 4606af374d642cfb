"""The `optim`, `trainer` and `logger` sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nemo_gdpo.config.base import Section, Text

Interval = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, strict=True)]


class SchedConfig(Section):
    """Linear warm-up, then cosine to `min_lr` at the last step, or constant."""

    name: Literal["CosineAnnealing", "constant"] = "CosineAnnealing"
    """Shape after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates of the linear warm-up."""
    min_lr: Rate = 0.0
    """Learning rate at the end of the cosine."""


class OptimConfig(Section):
    """AdamW."""

    name: Literal["adam"] = "adam"
    """Adam with decoupled weight decay."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-7
    """Highest learning rate."""
    weight_decay: Rate = 0.01
    """Decoupled; norms and biases are exempt."""
    # YAML has lists only; the two numbers themselves stay strict.
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8
    """Added to the root of the second moment."""
    use_distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while backward still runs."""
    sched: SchedConfig = SchedConfig()


class TrainerConfig(Section):
    """Length of the run and what happens along it. Intervals count updates."""

    devices: Annotated[int, Field(ge=1)] | None = None
    """Ranks on each node; null starts as many as one copy of the model needs."""
    num_nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Updates; with `max_epochs`, whichever ends first. Null does not limit."""
    max_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    """Passes over the data; may be a fraction. Null limits by `max_steps` alone."""
    gradient_clip_val: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    """Greatest gradient norm; null does not clip."""
    val_check_interval: Interval | None = None
    """Validate every so many updates; null only at the end."""
    limit_val_batches: Interval | None = None
    """Global batches of a validation; null is all."""
    save_interval: Interval | None = None
    """Checkpoint every so many updates; null only at the end."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Whole checkpoints that are kept: the one written last and the newest before it. Damaged ones
    do not count."""
    async_save: bool = False
    """Train on while a checkpoint is written. Its tensors are copied to the host's memory first.
    One is written at a time, and the end of the run waits for it."""
    verify_checkpoint: Literal["full", "sizes"] = "full"
    """Check of the checkpoint that a run resumes from: `full` compares the hashes of all files,
    which the ranks share; `sizes` their names and sizes alone."""
    check_initial_loss: bool = True
    """Stop at step 0 when the loss shows that policy and reference are not one model."""
    collective_timeout_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """Time in which all ranks have to start, and to come to a collective of the computation. What
    rank 0 does alone is not limited."""


class LoggerConfig(Section):
    """Loggers beside `metrics.jsonl`. The W&B key comes from the environment (WANDB_API_KEY)."""

    tensorboard: bool = True
    """Write TensorBoard events."""
    wandb: bool = False
    """Log to Weights & Biases."""
    wandb_project: Text | None = None
    """Project there."""
    wandb_name: Text | None = None
    """Name of the run there; null takes the name of output_dir."""
