"""The `optim`, `trainer` and `logger` sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from nemo_gdpo.config.base import FIXED, FREE, OnResume, Section, Text, derived

Interval = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, strict=True)]


class SchedConfig(Section):
    """Linear warm-up, then cosine to `min_lr` at the last update, or constant."""

    on_resume: ClassVar[OnResume | None] = FREE
    name: Literal["CosineAnnealing", "constant"] = "CosineAnnealing"
    """Shape after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates of the linear warm-up, the last of which has the full rate."""
    min_lr: Rate = 0.0
    """Learning rate of the last update under the cosine."""


class OptimConfig(Section):
    """AdamW."""

    on_resume: ClassVar[OnResume | None] = FREE
    name: Annotated[Literal["adam"], FIXED] = "adam"
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
    use_distributed_optimizer: Annotated[bool, FIXED] = False
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while backward still runs."""
    sched: SchedConfig = SchedConfig()


def _one_epoch(above: dict[str, Any]) -> float | None:
    return None if above.get("max_steps") is not None else 1.0


class TrainerConfig(Section):
    """Length of the run and what happens along it. Intervals count updates."""

    on_resume: ClassVar[OnResume | None] = FREE
    devices: Annotated[int, Field(ge=1)] | None = None
    """Ranks on each node; null starts as many as one copy of the model needs."""
    num_nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Updates, over as many passes as that takes; with `max_epochs`, whichever ends first. Null
    does not limit."""
    max_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = derived(
        _one_epoch, "${unless:${trainer.max_steps},1.0}"
    )
    """Passes over the data; may be a fraction. Null limits by `max_steps` alone, and is the default
    where that is set; otherwise it is 1."""
    max_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Minutes from its start on after which the run saves and ends with status 75, to be started
    again; early enough for one more step and checkpoint. The end of the job counts as well, where
    the environment tells it (`NEMO_GDPO_END_TIME` or `SLURM_JOB_END_TIME`, in Unix seconds). Null
    leaves it at that."""
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
    max_skipped_steps: Annotated[int, Field(ge=0)] = 3
    """Updates of the whole run that may be left out because a loss, a log-probability or the
    gradient was not finite; one more stops it. skipped_steps.jsonl names their pairs."""
    collective_timeout_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """Time in which all ranks have to start, and to come to a collective of the computation; then
    all end, and the one that is missing is named. What rank 0 does alone may take longer, as long
    as it computes, reads or writes."""


class LoggerConfig(Section):
    """Lines in a log file, and loggers beside `metrics.jsonl`. Keys and passwords of services come
    from the environment (WANDB_API_KEY, MLFLOW_TRACKING_TOKEN)."""

    on_resume: ClassVar[OnResume | None] = FREE
    every_n_steps: Interval = 10
    """A line every so many updates where the output is no terminal; first and last always."""
    peak_tflops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Dense TFLOP/s of one device in this precision, for perf/mfu; null takes the data sheet's of
    the devices that are known."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    wandb: bool = False
    """Log to Weights & Biases; WANDB_MODE=offline logs to files."""
    wandb_project: Text | None = None
    """Project there."""
    wandb_name: Text | None = None
    """Name of the run there; null takes the name of output_dir."""
    mlflow: bool = False
    """Log to MLflow."""
    mlflow_tracking_uri: Text | None = None
    """Server or file store; null takes MLFLOW_TRACKING_URI, or else output_dir/logs/mlflow."""
    mlflow_experiment: Text | None = None
    """Experiment there; null is nemo_gdpo."""
