"""Checks that the model, the batch sizes and the machine allow the configured mesh."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.world import (
    Hardware,
    configured_world_size,
    data_parallel_size,
    model_parallel_size,
    ranks_per_node,
)
from nemo_gdpo.precisions import DELAYED, arithmetic, in_fp8

TP = "model.tensor_model_parallel_size"
PP = "model.pipeline_model_parallel_size"
VPP = "model.virtual_pipeline_model_parallel_size"
CP = "model.context_parallel_size"
SP = "model.sequence_parallel"


def _divisors(number: int, limit: int = 64) -> str:
    return ", ".join(str(d) for d in range(1, min(number, limit) + 1) if number % d == 0)


def check_architecture(config: RunConfig, model_config: dict[str, Any]) -> Iterator[Problem]:
    """Heads, KV groups, layers and positions against the settings. Absent fields are not judged."""
    model = config.model
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    heads = model_config.get("num_attention_heads")
    groups = model_config.get("num_key_value_heads") or heads
    if isinstance(heads, int) and heads % tp:
        yield Problem(
            TP,
            f"{tp} does not divide the model's {heads} attention heads",
            f"choose one of {_divisors(heads)}",
        )
    if isinstance(groups, int) and groups % tp:
        yield Problem(
            TP,
            f"{tp} does not divide the model's {groups} key-value groups",
            f"choose one of {_divisors(groups)}",
        )
    longest = model_config.get("max_position_embeddings")
    if isinstance(longest, int) and config.data.max_length > longest:
        yield Problem(
            "data.max_length",
            f"{config.data.max_length} is beyond the {longest} positions the model was made for",
            f"set it to {longest} or less",
        )
    layers = model_config.get("num_hidden_layers")
    if not isinstance(layers, int):
        return
    if layers % pp:
        yield Problem(
            PP,
            f"{pp} does not divide the model's {layers} layers",
            f"choose one of {_divisors(layers)}",
        )
        return
    vpp = model.virtual_pipeline_model_parallel_size
    if vpp is not None and layers % (pp * vpp):
        yield Problem(
            VPP,
            f"PP{pp} x {vpp} chunks do not divide the model's {layers} layers",
            f"choose one of {_divisors(layers // pp)} (1 is null)",
        )


def check_mesh(config: RunConfig) -> Iterator[Problem]:
    """Settings of the mesh that contradict each other, whatever the model."""
    model = config.model
    if model.virtual_pipeline_model_parallel_size and model.pipeline_model_parallel_size == 1:
        yield Problem(
            VPP,
            "a virtual pipeline needs more than one pipeline rank",
            f"set it to null, or {PP} to 2 or more",
        )
    if model.sequence_parallel and model.tensor_model_parallel_size == 1:
        yield Problem(
            SP,
            "there is nothing to split over one tensor-parallel rank",
            f"set it to false, or {TP} to 2 or more",
        )
    cp = model.context_parallel_size
    if cp > 1 and config.data.prefix_sharing:
        yield Problem(
            "data.prefix_sharing",
            "shared prompts are not cut over context-parallel ranks",
            f"set it to false, or {CP} to 1",
        )
    if cp > 1 and not config.data.packing:
        split = 2 * cp * (model.tensor_model_parallel_size if model.sequence_parallel else 1)
        if config.data.max_length % split:
            down = config.data.max_length // split * split
            near = f"{down} or {down + split}" if down else f"{split}"
            yield Problem(
                "data.max_length",
                f"{config.data.max_length} cannot be cut into {split} equal pieces, as CP{cp}"
                f"{' with sequence_parallel' if model.sequence_parallel else ''} needs",
                f"set it to {near}",
            )


def check_world(config: RunConfig, world: Hardware | None) -> Iterator[Problem]:
    """Number of ranks and GPUs against the mesh; and the global batch against both."""
    configured = configured_world_size(config)
    size = configured
    if world is not None and world.world_size is not None:
        size = world.world_size
        explicit = config.trainer.devices is not None
        if explicit and size != configured:
            yield Problem(
                "trainer.devices",
                f"{ranks_per_node(config)} x {config.trainer.num_nodes} nodes are configured, but "
                f"{size} ranks were started",
                "make both agree, or set trainer.devices=null",
            )
    needed = model_parallel_size(config)
    copies = data_parallel_size(config, size)
    if copies is None:
        model = config.model
        yield Problem(
            "trainer.devices" if size == configured else "model",
            f"{size} ranks cannot be cut into copies of TP{model.tensor_model_parallel_size} x "
            f"PP{model.pipeline_model_parallel_size} x CP{model.context_parallel_size} = {needed}",
            f"use a multiple of {needed} ranks, or change the sizes",
        )
    else:
        yield from _check_batch(config, copies)
    if world is not None and world.gpus is not None and ranks_per_node(config) > world.gpus:
        yield Problem(
            "trainer.devices",
            f"{ranks_per_node(config)} ranks a node are needed, but this one has {world.gpus} GPUs",
            "use more nodes or a smaller mesh",
        )


def _check_batch(config: RunConfig, copies: int) -> Iterator[Problem]:
    model, together = config.model, config.data.pairs_of_group
    for key, pairs in (
        ("model.global_batch_size", model.global_batch_size),
        ("model.micro_batch_size", model.micro_batch_size),
    ):
        if pairs % together:
            yield Problem(
                key,
                f"{pairs} pairs are no whole groups of {2 * together} answers, which are "
                f"{together} pairs (data.group_size)",
                f"set it to {-(-pairs // together) * together}",
            )
    if config.data.packing:  # as many micro-batches as the pairs need, and the mesh
        if model.global_batch_size < copies:
            yield Problem(
                "model.global_batch_size",
                f"{model.global_batch_size} pairs leave some of {copies} data-parallel ranks idle",
                f"set it to {copies} or more, or use fewer ranks",
            )
        return
    step = model.micro_batch_size * copies
    whole = "model.global_batch_size"
    if model.global_batch_size % step:
        down = model.global_batch_size // step * step
        near = f"{down} or {down + step}" if down else f"{step}"
        yield Problem(
            whole,
            f"{model.global_batch_size} pairs cannot be split into micro-batches of "
            f"{model.micro_batch_size} on {copies} data-parallel ranks",
            f"set it to {near}, or change model.micro_batch_size or the mesh",
        )
        return
    if model.virtual_pipeline_model_parallel_size and model.pipeline_model_parallel_size > 1:
        micro_batches, pp = model.global_batch_size // step, model.pipeline_model_parallel_size
        if micro_batches % pp:
            yield Problem(
                whole,
                f"it gives {micro_batches} micro-batches a rank, and a virtual pipeline on PP{pp} "
                f"needs a multiple of {pp}",
                f"set it to {-(-micro_batches // pp) * pp * step}, or {VPP} to null",
            )


def check_precision(config: RunConfig, world: Hardware | None) -> Iterator[Problem]:
    """Precisions that the machine lacks, and FP8 combinations that are known to go wrong."""
    precision, model = config.precision, config.model
    if world is not None and arithmetic(precision) not in world.precisions:
        usable = ", ".join(sorted(world.precisions))
        reason = world.precision_reason or f"this machine runs {usable} only"
        yield Problem("precision", reason.removeprefix(f"precision={precision} "), f"use {usable}")
    if precision == DELAYED and model.activations_checkpoint_granularity is not None:
        yield Problem(
            "precision",
            f"{precision} would round what is computed again by other scales than the first time",
            "set model.activations_checkpoint_granularity=null",
        )
    if not in_fp8(precision):
        return
    if config.reference == "swap":
        yield Problem(
            "reference",
            f"swap puts other weights into layers that keep theirs in FP8 under precision="
            f"{precision}",
            "set reference=cache or resident, or precision=bf16",
        )
    if (
        model.pipeline_model_parallel_size > 1
        and model.activations_checkpoint_granularity is not None
        and model.global_batch_size > model.micro_batch_size
    ):
        yield Problem(
            "precision",
            f"{precision} with a pipeline, recomputation and accumulation has produced NaN in "
            "megatron-core",
            f"set model.activations_checkpoint_granularity=null, {PP}=1, or precision=bf16",
        )
