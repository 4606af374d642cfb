"""Combinations of settings that cannot be honoured, or that nothing would read."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nemo_gdpo.config.base import plain_data
from nemo_gdpo.config.hub import may_be_hub_name
from nemo_gdpo.config.live_labels import LiveLabelsConfig
from nemo_gdpo.config.lora import ADAPTER_CONFIG, LoraConfig
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig


def check_scores(config: RunConfig) -> Iterator[Problem]:
    """An objective that grades pairs, on data that has no scores."""
    if not config.objective.needs_scores:
        return
    name, data = config.objective.name, config.data
    if data.preset in ("anthropic_hh", "tldr_comparisons"):
        yield Problem(
            "data.preset",
            f"{data.preset} has no scores, and {name} grades pairs by them",
            "choose data=ultrafeedback_binarized, odpo_json or jsonl with scores, or objective=dpo",
        )
    if data.format == "nemo_rl":
        yield Problem(
            "data.format",
            f"nemo_rl has ranks but no scores, and {name} grades pairs by them",
            "use the trl format with chosen_score and rejected_score, or objective=dpo",
        )


def check_groups(config: RunConfig) -> Iterator[Problem]:
    """Groups of answers without their size, or for an objective that wants a preference."""
    data, name = config.data, config.objective.name
    if data.reader_format != "groups":
        if data.group_size is not None:
            yield Problem(
                "data.group_size",
                f"nothing reads it with data.format={data.reader_format}",
                "set it to null, or data.format=groups",
            )
        return
    if data.group_size is None:
        yield Problem(
            "data.group_size",
            "rows of data.format=groups have several answers, and how many is not said",
            "set it to the number of answers in a row",
        )
    if data.on_bad_pair == "drop":
        yield Problem(
            "data.on_bad_pair",
            "drop would take two answers out of a group",
            "set it to error, and leave bad answers out where groups are made",
        )
    columns = {"weight_column": data.weight_column, "margin_column": data.margin_column}
    for key, column in columns.items():
        if column is not None:
            yield Problem(f"data.{key}", "a row of data.format=groups is no pair", "set it to null")
    if name != "gflownet":
        yield Problem(
            "data.format",
            f"answers of a group are not chosen or rejected, as objective={name} wants",
            "make pairs of them (nemo-gdpo pairs), or choose objective=gflownet",
        )


def check_pair_columns(config: RunConfig) -> Iterator[Problem]:
    """Columns of weights and margins that mean nothing, or that are one."""
    data = config.data
    named = {"weight_column": data.weight_column, "margin_column": data.margin_column}
    refusal = config.objective.margin_refusal()
    if data.margin_column is not None and refusal is not None:
        yield Problem(
            "data.margin_column",
            f"with objective={config.objective.name}, {refusal}",
            "set it to null, or choose objective=dpo without label smoothing",
        )
    if data.margin_column is not None and data.margin_column == data.weight_column:
        yield Problem(
            "data.margin_column",
            f"{data.margin_column} is data.weight_column, too",
            "name another column, or set one of the two to null",
        )
    for key, column in named.items():
        if column is not None and data.preset == "odpo_json":
            yield Problem(
                f"data.{key}",
                "a row of odpo_json is no pair: pairs are made of several rows",
                "set it to null, or give pairs as data=jsonl",
            )
        if column is not None and data.format == "unpaired":
            yield Problem(
                f"data.{key}",
                "a row of data.format=unpaired is no pair, and has none",
                "set it to null, or give pairs",
            )


def check_unpaired(config: RunConfig) -> Iterator[Problem]:
    """Rows of one response for what compares two, or what shares their prompts."""
    data, objective = config.data, config.objective
    if data.format != "unpaired":
        if data.label_threshold is not None:
            yield Problem(
                "data.label_threshold",
                f"nothing reads it with data.format={data.format}",
                "set it to null, or data.format=unpaired",
            )
        return
    if not objective.takes_unpaired:
        name = objective.name
        told = f"{name} with balance=tb" if name == "gdpo" else name
        yield Problem(
            "data.format",
            f"{told} compares two responses to one prompt, and unpaired rows have one",
            "give pairs, or choose objective=gdpo with objective.balance=db or subtb",
        )
    if data.prefix_sharing:
        yield Problem(
            "data.prefix_sharing",
            "unpaired rows have no prompt in common",
            "set it to false",
        )


def check_live_labels(config: RunConfig) -> Iterator[Problem]:
    """A ledger for an objective that asks nobody, or whose batches it could not fill."""
    label = config.label
    if label.ledger is None:
        defaults = plain_data(LiveLabelsConfig())
        for name, value in plain_data(label).items():
            if value != defaults[name]:
                yield Problem(
                    f"label.{name}", "nothing reads it with label.ledger=null", "set label.ledger"
                )
        return
    if config.objective.name != "adpo":
        yield Problem(
            "label.ledger",
            f"objective={config.objective.name} asks for no label",
            "choose objective=adpo, or make a file of the labelled pairs and set it to null",
        )


def check_reference(config: RunConfig, *, files: bool) -> Iterator[Problem]:
    """Keys of the cache without a cache, and adapters that are to be off where there are none."""
    if files and config.reference_model is not None and not Path(config.reference_model).exists():
        yield Problem(
            "reference_model",
            f"{config.reference_model} does not exist",
            "give a model's directory, or null for what training starts from",
        )
    if config.reference != "cache" and config.reference_cache_dir is not None:
        yield Problem(
            "reference_cache_dir",
            f"nothing reads it with reference={config.reference}",
            "set it to null, or reference=cache",
        )
    other, start = config.reference_model, config.lora.restore_from_path
    is_base = other is not None and _same_place(other, config.model.restore_from_path)
    if other is not None and config.reference in ("resident", "swap"):
        yield Problem(
            "reference_model",
            f"reference={config.reference} keeps a copy of what training starts from",
            "set reference=cache, or reference_model=null",
        )
    if other is not None and config.lora.base_precision != "run" and config.reference == "cache":
        yield Problem(
            "reference_model",
            "a base in four bits cannot give its place to another model",
            "set reference=adapter_off, or lora.base_precision=run",
        )
    if config.reference != "adapter_off":
        return
    if config.lora.rank is None:
        yield Problem(
            "reference",
            "adapter_off needs an adapter, and with lora.rank=null there is none",
            "set lora.rank=16, or reference=cache",
        )
    elif other is not None and not is_base:
        yield Problem(
            "reference_model",
            f"adapter_off is model.restore_from_path alone, and {other} is another place",
            "set it to model.restore_from_path, or reference=cache",
        )
    elif start is not None and other is None:
        yield Problem(
            "reference",
            "adapter_off is the base alone, and with lora.restore_from_path training starts from "
            "another model than that",
            "set it to cache or resident, or reference_model to the base if that is what is meant",
        )


def _same_place(one: str, other: str | None) -> bool:
    return other is not None and Path(one).absolute() == Path(other).absolute()


def check_lora(config: RunConfig, *, files: bool) -> Iterator[Problem]:
    """Keys of adapters without adapters, and what cannot be had with them.

    Args:
        config: of the run.
        files: look at the directory of the adapter to start from, too.
    """
    lora = config.lora
    if lora.rank is None:
        defaults = plain_data(LoraConfig())
        for name, value in plain_data(lora).items():
            if value != defaults[name]:
                yield Problem(
                    f"lora.{name}",
                    "nothing reads it with lora.rank=null, which trains every weight",
                    "remove it, or set lora.rank",
                )
        return
    if len(set(lora.targets)) < len(lora.targets):
        yield Problem("lora.targets", "a layer is named twice", "name each once")
    if config.export_nemo:
        yield Problem(
            "export_nemo",
            "an archive of a model with adapters (lora.rank) is not built",
            "set it to false, or lora.rank=null; export_hf writes the merged model",
        )
    start = lora.restore_from_path
    if files and start is not None and not (Path(start) / ADAPTER_CONFIG).is_file():
        yield Problem(
            "lora.restore_from_path",
            f"{start} has no {ADAPTER_CONFIG}",
            "give the directory of an adapter in PEFT's format",
        )


def check_lengths(config: RunConfig) -> Iterator[Problem]:
    """A prompt must leave room for a response."""
    data = config.data
    if data.max_prompt_length >= data.max_length:
        yield Problem(
            "data.max_prompt_length",
            f"{data.max_prompt_length} leaves no room for a response within data.max_length="
            f"{data.max_length}",
            "make it smaller, or data.max_length larger",
        )


def check_data(config: RunConfig, *, files: bool) -> Iterator[Problem]:
    """Keys of the data section against each other, and, with `files`, against the disk."""
    data = config.data
    if data.preset is not None and data.format != "auto":
        yield Problem(
            "data.format",
            f"{data.format} would be ignored: preset={data.preset} decides the columns",
            "leave it at auto, or set data.preset=null",
        )
    if data.pack_tokens is not None and not data.packing:
        yield Problem(
            "data.pack_tokens",
            "nothing reads it with data.packing=false",
            "set it to null, or data.packing=true",
        )
    if data.prefix_sharing and not data.packing:
        yield Problem(
            "data.prefix_sharing",
            "prompts are shared in packed rows only",
            "set data.packing=true, or it to false",
        )
    if data.train_path is None:
        yield Problem(
            "data.train_path", "is not set", "set data.train_path=FILE, or export NEMO_GDPO_TRAIN"
        )
    if files:
        yield from _check_data_files(config)


def _check_data_files(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    for key, path in (
        ("data.train_path", data.train_path),
        ("data.validation_path", data.validation_path),
    ):
        if path is None:
            continue
        if not Path(path).exists() and not may_be_hub_name(path):
            yield Problem(key, f"{path} does not exist", "correct the path")
        elif Path(path).is_file() and Path(path).stat().st_size == 0:
            yield Problem(key, f"{path} is empty", "give a file with preference pairs")
    if data.chat_template is not None and not Path(data.chat_template).is_file():
        reason = f"{data.chat_template} is not a file"
        yield Problem("data.chat_template", reason, "correct the path, or set it to null")


def check_training(config: RunConfig) -> Iterator[Problem]:
    """Length of the run, schedule, validation, loggers."""
    trainer, optim = config.trainer, config.optim
    if trainer.max_steps is None and trainer.max_epochs is None:
        yield Problem(
            "trainer.max_steps",
            "neither it nor trainer.max_epochs says when to stop",
            "set one of the two",
        )
    if trainer.max_steps is not None and optim.sched.warmup_steps >= trainer.max_steps:
        yield Problem(
            "optim.sched.warmup_steps",
            f"{optim.sched.warmup_steps} steps are not fewer than trainer.max_steps="
            f"{trainer.max_steps}",
            "make it smaller",
        )
    if optim.sched.name == "constant" and optim.sched.min_lr != 0.0:
        yield Problem(
            "optim.sched.min_lr",
            "nothing reads it with a constant schedule",
            "set it to 0.0, or optim=adamw_cosine",
        )
    elif optim.sched.min_lr > optim.lr:
        yield Problem(
            "optim.sched.min_lr",
            f"{optim.sched.min_lr:g} is above optim.lr={optim.lr:g}",
            "make it smaller",
        )
    if config.data.validation_path is None:
        for key, value in (
            ("trainer.val_check_interval", trainer.val_check_interval),
            ("trainer.limit_val_batches", trainer.limit_val_batches),
        ):
            if value is not None:
                yield Problem(
                    key,
                    "there is nothing to validate on: data.validation_path is null",
                    "set it to null, or data.validation_path=FILE",
                )
    yield from _check_loggers(config)


def _check_loggers(config: RunConfig) -> Iterator[Problem]:
    """Keys of a logger that is off, and a password where everybody reads it."""
    logger = config.logger
    for switch, is_on, keys in (
        (
            "logger.wandb",
            logger.wandb,
            {
                "logger.wandb_project": logger.wandb_project,
                "logger.wandb_name": logger.wandb_name,
            },
        ),
        (
            "logger.mlflow",
            logger.mlflow,
            {
                "logger.mlflow_tracking_uri": logger.mlflow_tracking_uri,
                "logger.mlflow_experiment": logger.mlflow_experiment,
            },
        ),
    ):
        for key, value in keys.items():
            if value is not None and not is_on:
                reason = f"nothing reads it with {switch}=false"
                yield Problem(key, reason, f"set it to null, or {switch}=true")
    if urlsplit(logger.mlflow_tracking_uri or "").password is not None:
        yield Problem(
            "logger.mlflow_tracking_uri",
            "holds a password, which would be visible in process lists, logs and config.yaml",
            "leave it out and export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )


def check_logger_packages(config: RunConfig) -> Iterator[Problem]:
    """Loggers that were asked for and are not installed."""
    logger = config.logger
    for key, is_on, module, extra in (
        ("logger.tensorboard", logger.tensorboard, "tensorboard", "train"),
        ("logger.wandb", logger.wandb, "wandb", "train"),
        ("logger.mlflow", logger.mlflow, "mlflow", "mlflow"),
    ):
        if is_on and importlib.util.find_spec(module) is None:
            yield Problem(
                key,
                f"the package {module} is not installed",
                f"install nemo_gdpo with the extra {extra}, or set {key}=false",
            )


def check_checkpoints(config: RunConfig) -> Iterator[Problem]:
    """A checkpoint that nothing goes on beside."""
    if config.trainer.async_save and config.trainer.save_interval is None:
        yield Problem(
            "trainer.async_save",
            "the only checkpoint is the last one, which the end of the run waits for",
            "set trainer.save_interval, or trainer.async_save=false",
        )


def wandb_can_log_in() -> bool:
    """Whether a key for Weights & Biases exists, or nothing has to be logged in to."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in {"offline", "disabled"}:
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")


def check_wandb_login(config: RunConfig) -> Iterator[Problem]:
    """Weights & Biases would otherwise ask for a key on a terminal that a job does not have."""
    if config.logger.wandb and not wandb_can_log_in():
        yield Problem(
            "logger.wandb",
            "there is no key for Weights & Biases in the environment",
            "export WANDB_API_KEY, or WANDB_MODE=offline, or set logger.wandb=false",
        )
