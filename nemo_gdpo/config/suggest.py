"""Suggestions for mistyped names: did you mean ...?

Keys of other trainers are looked up first: somebody who types TRL's or NeMo's name for a thing is
told the name that it has here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_DROPOUT = "remove it: dropout would make policy and reference two different models"
_EIGHT_BITS = "remove it: a base in 8 bits is not built; lora.base_precision=nf4 has 4"
_EVERY_STEP = (
    "remove it: every step is logged; logger.every_n_steps is the distance of lines in a log file"
)

ALIASES: dict[str, str] = {
    # Hugging Face and TRL (TrainingArguments, DPOConfig, ScriptArguments).
    "learning_rate": "optim.lr",
    "optim.learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "adam_epsilon": "optim.eps",
    "max_grad_norm": "trainer.gradient_clip_val",
    "warmup_steps": "optim.sched.warmup_steps",
    "warmup_ratio": "optim.sched.warmup_steps",
    "lr_scheduler_type": "optim=adamw_cosine or optim=adamw_constant",
    "per_device_train_batch_size": "model.micro_batch_size",
    "per_device_eval_batch_size": "model.micro_batch_size",
    "gradient_accumulation_steps": "model.global_batch_size",
    "num_train_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "eval_steps": "trainer.val_check_interval",
    "save_steps": "trainer.save_interval",
    "save_total_limit": "trainer.keep_checkpoints",
    "logging_steps": _EVERY_STEP,
    "report_to": "logger.wandb, logger.tensorboard, logger.mlflow",
    "run_name": "logger.wandb_name",
    "bf16": "precision=bf16",
    "fp16": "precision=bf16",
    "fp8": "precision=fp8_tensorwise and its siblings",
    "gradient_checkpointing": "model.activations_checkpoint_granularity",
    "model_name_or_path": "model.restore_from_path",
    "ref_model": "reference",
    "precompute_ref_log_probs": "reference=cache",
    "dataset_name": "data.train_path",
    "dataset": "data.train_path",
    "train_file": "data.train_path",
    "max_prompt_length": "data.max_prompt_length",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "truncation_mode": "data.truncation_mode",
    "padding_free": "data.packing",
    "packing": "data.packing",
    "beta": "objective.beta",
    "label_smoothing": "objective.label_smoothing",
    "loss_type": "objective=dpo, ipo, odpo, adpo or gdpo",
    "objective.loss_type": "objective=dpo, ipo, odpo, adpo or gdpo",
    "use_peft": "lora.rank",
    "peft_config": "lora.rank, lora.alpha and lora.targets",
    "load_in_4bit": "lora.base_precision=nf4",
    "load_in_8bit": _EIGHT_BITS,
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "target_modules": "lora.targets",
    "lora_dropout": _DROPOUT,
    "lora.dropout": _DROPOUT,
    "model.peft": "lora.rank, lora.alpha and lora.targets",
    # NeMo, NeMo-Aligner.
    "trainer.log_every_n_steps": _EVERY_STEP,
    "trainer.precision": "precision",
    "trainer.accumulate_grad_batches": "model.global_batch_size",
    "trainer.dpo.max_steps": "trainer.max_steps",
    "trainer.dpo.max_epochs": "trainer.max_epochs",
    "trainer.dpo.val_check_interval": "trainer.val_check_interval",
    "trainer.dpo.save_interval": "trainer.save_interval",
    "trainer.dpo.gradient_clip_val": "trainer.gradient_clip_val",
    "pretrained_checkpoint.restore_from_path": "model.restore_from_path",
    "model.dpo.ref_policy_kl_penalty": "objective.beta",
    "model.optim.lr": "optim.lr",
    "model.precision": "precision",
    "model.encoder_seq_length": "data.max_length",
    "model.data.data_prefix": "data.train_path",
    "exp_manager.explicit_log_dir": "output_dir",
    "exp_manager.exp_dir": "output_dir",
    "exp_manager.create_wandb_logger": "logger.wandb",
    "exp_manager.create_mlflow_logger": "logger.mlflow",
    # NeMo-RL.
    "policy.model_name": "model.restore_from_path",
    "policy.precision": "precision",
    "policy.train_micro_batch_size": "model.micro_batch_size",
    "policy.train_global_batch_size": "model.global_batch_size",
    "policy.max_total_sequence_length": "data.max_length",
    "policy.megatron_cfg.tensor_model_parallel_size": "model.tensor_model_parallel_size",
    "policy.megatron_cfg.pipeline_model_parallel_size": "model.pipeline_model_parallel_size",
    "dpo.reference_policy_kl_penalty": "objective.beta",
    "dpo.max_num_steps": "trainer.max_steps",
    "dpo.max_num_epochs": "trainer.max_epochs",
    "dpo.val_period": "trainer.val_check_interval",
    "checkpointing.save_period": "trainer.save_interval",
    "checkpointing.checkpoint_dir": "output_dir",
    "checkpointing.keep_top_k": "trainer.keep_checkpoints",
    "cluster.gpus_per_node": "trainer.devices",
    "cluster.num_nodes": "trainer.num_nodes",
    "logger.wandb_enabled": "logger.wandb",
    "logger.mlflow_enabled": "logger.mlflow",
    # Sections of other verbs.
    "generation": "remove it: it is a setting of `nemo-gdpo generate`",
    "evaluation": "remove it: it is a setting of `nemo-gdpo evaluate`",
    # Short names.
    "tensor_parallel_size": "model.tensor_model_parallel_size",
    "pipeline_parallel_size": "model.pipeline_model_parallel_size",
    "tp": "model.tensor_model_parallel_size",
    "pp": "model.pipeline_model_parallel_size",
    "cp": "model.context_parallel_size",
    "micro_batch_size": "model.micro_batch_size",
    "global_batch_size": "model.global_batch_size",
    "batch_size": "model.global_batch_size",
    "epochs": "trainer.max_epochs",
    "lr": "optim.lr",
}

REFUSED: dict[tuple[str, str], tuple[str, str]] = {
    ("precision", "fp8_delayed"): (
        # Transformer Engine's FP8GlobalStateManager renews them where gradients are enabled only:
        # a reference that is computed before training has the scale 1 throughout, and after any
        # calibration still another scale than each training step.
        "takes its scales from past passes, so that policy and reference are quantised by "
        "different ones and their log-ratios are off from the first step on",
        "use precision=fp8_tensorwise, whose scales are those of the present tensor",
    ),
}
"""(key, value) that is refused -> the reason, which follows the value, and the remedy."""
"""Name elsewhere -> key here, or what to do instead."""

GENERATION_ALIASES: dict[str, str] = {
    "n": "generation.num_samples",
    "generation.n": "generation.num_samples",
    "num_samples": "generation.num_samples",
    "num_return_sequences": "generation.num_samples",
    "generation.num_return_sequences": "generation.num_samples",
    "temperature": "generation.temperature",
    "top_p": "generation.top_p",
    "top_k": "generation.top_k",
    "max_tokens": "generation.max_tokens",
    "max_new_tokens": "generation.max_tokens",
    "generation.max_new_tokens": "generation.max_tokens",
    "generation.stop_strings": "generation.stop",
    "gpu_memory_utilization": "generation.memory_utilization",
    "generation.gpu_memory_utilization": "generation.memory_utilization",
    "tensor_parallel_size": "generation.tensor_parallel_size",
    "model": "model.restore_from_path",
    "model_name_or_path": "model.restore_from_path",
    "prompts": "data.prompts_path",
    "seed": "generation.seed",
    "dtype": "generation.dtype",
}
"""The same for `nemo-gdpo generate`: vLLM's and transformers' names."""


def closest(given: str, known: Iterable[str]) -> str | None:
    """The name that `given` was probably meant to be, or None.

    Dotted keys are compared whole, then by their last part, so that a key in the wrong section
    (`trainer.lr`) is found, too.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.75)
    if near:
        return near[0]
    last = given.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for name in names:
        by_last.setdefault(name.rpartition(".")[2], name)
    near = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.75)
    if near:
        return by_last[near[0]]
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return near[0] if near else None


def hint(given: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing."""
    meant = closest(given, known)
    return f" (did you mean {meant}?)" if meant else ""


def alias(given: str, aliases: Mapping[str, str], known: Iterable[str]) -> str | None:
    """The key to write for another program's key, or for the section it is in (`lora.rank`)."""
    sections = {name.partition(".")[0] for name in known if "." in name}
    parts = given.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in aliases and (length == len(parts) or name not in sections):
            meant = aliases[name]
            return meant if meant.startswith("remove it") else f"use {meant}"
    return None
