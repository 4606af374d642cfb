"""The estimate of memory for a configuration, and the check that it could fit anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nemo_gdpo.config.checks_mesh import PP, TP
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.world import configured_world_size, data_parallel_size
from nemo_gdpo.plan.adapters import Adapters
from nemo_gdpo.plan.hardware import MOST_MEMORY
from nemo_gdpo.plan.memory import Setup, fullest, memory_of_stages
from nemo_gdpo.plan.shape import KNOWN, Shape, read_shape
from nemo_gdpo.precisions import arithmetic

FACTOR = 2
"""What is beyond so many times the memory of any known device is refused: far more than the
estimate can be wrong by."""


def shape_of(config: RunConfig, model_config: Mapping[str, Any] | None) -> Shape | None:
    """Sizes of the model: those of its files, else of `model.architecture`; None: not known.

    Args:
        config: of the run.
        model_config: see `nemo_gdpo.config.model_files.read_model_config`.
    """
    found = None if model_config is None else read_shape(model_config)
    if found is None and config.model.architecture is not None:
        found = KNOWN[config.model.architecture]
    return found


def setup_of(config: RunConfig, data_parallel: int) -> Setup:
    """What of a configuration decides a rank's memory.

    Args:
        config: of the run.
        data_parallel: copies of the model.
    """
    model, data, lora = config.model, config.data, config.lora
    pairs = model.global_batch_size / data_parallel
    return Setup(
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        chunks=model.virtual_pipeline_model_parallel_size or 1,
        context=model.context_parallel_size,
        data=data_parallel,
        sequence_parallel=model.sequence_parallel,
        precision=arithmetic(config.precision),
        recompute=model.activations_checkpoint_granularity,
        # On a GPU, as `nemo_gdpo.platform.layers.choose_layers` has it.
        fused=arithmetic(config.precision) != "fp32" and model.layers != "local",
        distributed_optimizer=config.optim.use_distributed_optimizer,
        resident=config.reference == "resident",
        swapped=config.reference == "swap",
        adapters=None if lora.rank is None else Adapters(lora.rank, lora.targets),
        four_bit=lora.base_precision == "nf4",
        prefix_sharing=data.prefix_sharing,
        positions=positions_of(config, model.micro_batch_size),
        row=data.max_length,
        micro_batches=max(1, -(-int(pairs) // model.micro_batch_size)),
        logprob_tokens=model.logprob_chunk_tokens,
        vocab_multiple=model.make_vocab_size_divisible_by,
    )


def positions_of(config: RunConfig, micro_batch_size: int) -> int:
    """Positions of a micro-batch at most: what the limits of the configuration allow."""
    data = config.data
    if data.packing and data.pack_tokens is not None:
        return data.pack_tokens
    return 2 * micro_batch_size * data.max_length


def check_memory(config: RunConfig, model_config: Mapping[str, Any] | None) -> Iterator[Problem]:
    """A rank that would need far more memory than any known device has."""
    shape = shape_of(config, model_config)
    copies = data_parallel_size(config, configured_world_size(config))
    tensor, pipeline = (
        config.model.tensor_model_parallel_size,
        config.model.pipeline_model_parallel_size,
    )
    if shape is None or copies is None or shape.layers % pipeline or shape.heads % tensor:
        return
    setup = setup_of(config, copies)
    found = fullest(memory_of_stages(shape, setup))
    needed = found.static + found.activations
    if needed <= FACTOR * MOST_MEMORY:
        return
    told = (
        f"a rank would need about {needed / 1e9:,.0f} GB ({found.static / 1e9:,.0f} GB of weights, "
        f"gradients and optimizer, the rest for {setup.positions:,} positions at once), and no "
        f"known device has more than {MOST_MEMORY / 1e9:.0f} GB"
    )
    if found.static > FACTOR * MOST_MEMORY:
        yield Problem(TP, told, f"raise {TP}, {PP} or the number of ranks")
        return
    yield Problem(*_to_change(config, told, _fitting(shape, setup)))


def _fitting(shape: Shape, setup: Setup) -> int:
    """Positions of a micro-batch that the largest known device could hold."""
    most, least = setup.positions, 1
    while least < most:
        middle = -(-(least + most) // 2)
        row = min(setup.row, middle)
        total = fullest(memory_of_stages(shape, replace(setup, positions=middle, row=row))).total
        least, most = (middle, most) if total <= MOST_MEMORY else (least, middle - 1)
    return least


def _to_change(config: RunConfig, told: str, positions: int) -> tuple[str, str, str]:
    model, data = config.model, config.data
    if data.packing and data.pack_tokens is not None:
        return "data.pack_tokens", told, f"set it to {positions} or less"
    key = "model.micro_batch_size"
    pairs = positions // (2 * data.max_length)
    told = f"{model.micro_batch_size} pairs of data.max_length={data.max_length}: {told}"
    if pairs:
        return key, told, f"set it to {pairs} or less, or lower data.max_length"
    length = positions // 2
    return "data.max_length", told, f"set it to {length} or less, with {key}=1"
