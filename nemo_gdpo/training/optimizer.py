"""Megatron's optimizer and learning-rate schedule from the configuration."""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.training import OptimConfig
from nemo_gdpo.precisions import arithmetic

_DECAY_STYLES = {"CosineAnnealing": "cosine", "constant": "constant"}


def build_optimizer(config: RunConfig, chunks: list[Any]) -> Any:
    """AdamW over the wrapped model chunks; clipping happens inside `step`, before the update."""
    optim = config.optim
    megatron_config = OptimizerConfig(
        optimizer=optim.name,
        lr=optim.lr,
        min_lr=optim.sched.min_lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_eps=optim.eps,
        bf16=arithmetic(config.precision) != "fp32",  # FP8 runs keep bfloat16 parameters, too
        use_distributed_optimizer=optim.use_distributed_optimizer,
        clip_grad=config.trainer.gradient_clip_val or 0.0,  # 0: megatron does not clip
    )
    return get_megatron_optimizer(megatron_config, chunks)


def build_scheduler(config: RunConfig, optimizer: Any, total_steps: int) -> OptimizerParamScheduler:
    """Linear warm-up, then cosine to `min_lr` or constant. One unit is one optimizer step.

    Update i, counted from 0, is made at i + 1: the last of the warm-up, or the first where there is
    none, has the full rate, and the last of all has `min_lr`.
    """
    optim, sched = config.optim, config.optim.sched
    warmup = max(sched.warmup_steps, 1)  # of one: the first update has the full rate
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=optim.lr,
        min_lr=sched.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=max(total_steps, warmup + 1),
        lr_decay_style=_DECAY_STYLES[sched.name],
        start_wd=optim.weight_decay,
        end_wd=optim.weight_decay,
        wd_incr_steps=total_steps,
        wd_incr_style="constant",
    )


def with_own_settings(state: Any, config: OptimConfig) -> None:
    """Put this run's settings in the place of those in a loaded optimizer state.

    Megatron takes them from the checkpoint otherwise, or does not find the groups of parameters,
    which it tells apart by their rates. What is left is set by the schedule at every update.

    Args:
        state: nested, changed in place.
        config: of this run.
    """
    own = {
        "max_lr": config.lr,
        "min_lr": config.sched.min_lr,
        "betas": config.betas,
        "eps": config.eps,
    }
    if isinstance(state, dict):
        for group in state.get("param_groups", ()):
            group.update({name: value for name, value in own.items() if name in group})
        for inner in state.values():
            with_own_settings(inner, config)
