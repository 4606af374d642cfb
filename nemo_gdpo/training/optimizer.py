"""Megatron's optimizer and learning-rate schedule from the configuration."""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_gdpo.config.schema import RunConfig

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
        bf16=config.precision != "fp32",  # FP8 runs keep bfloat16 parameters, too
        use_distributed_optimizer=optim.use_distributed_optimizer,
        clip_grad=config.trainer.gradient_clip_val or 0.0,  # 0: megatron does not clip
    )
    return get_megatron_optimizer(megatron_config, chunks)


def build_scheduler(config: RunConfig, optimizer: Any, total_steps: int) -> OptimizerParamScheduler:
    """Linear warm-up, then cosine to `min_lr` or constant. One unit is one optimizer step."""
    optim, sched = config.optim, config.optim.sched
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=optim.lr,
        min_lr=sched.min_lr,
        lr_warmup_steps=sched.warmup_steps,
        # One more than there are: the last update still moves, min_lr would come after it.
        lr_decay_steps=max(total_steps, sched.warmup_steps) + 1,
        lr_decay_style=_DECAY_STYLES[sched.name],
        start_wd=optim.weight_decay,
        end_wd=optim.weight_decay,
        wd_incr_steps=total_steps,
        wd_incr_style="constant",
    )
