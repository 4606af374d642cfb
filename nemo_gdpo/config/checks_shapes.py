"""Checks that layers have sizes that FP8 kernels take, and rows lengths that the model takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_gdpo.config.checks_mesh import TP
from nemo_gdpo.config.packing import row_multiple, up_to
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.shapes import Multiples, fp8_multiples, sequence_multiple
from nemo_gdpo.precisions import REHEARSALS, in_fp8

IN_BF16 = 2
"""Layers that FP8 recipes leave in bfloat16: the first and the last."""


def check_fp8_shapes(config: RunConfig, model_config: dict[str, Any]) -> Iterator[Problem]:
    """Sizes of the layers on each rank. Absent fields of the architecture are not judged."""
    precision, model = config.precision, config.model
    multiples = fp8_multiples(precision, sequence_parallel=model.sequence_parallel)
    layers = model_config.get("num_hidden_layers")
    few = isinstance(layers, int) and layers <= IN_BF16
    if few and in_fp8(precision):
        yield Problem(
            "precision",
            f"the first and the last layer stay in bf16 under {precision}, and the model has "
            f"{layers}: none would be in FP8",
            "use precision=bf16",
        )
    if few and precision in REHEARSALS:
        yield Problem(
            "precision",
            f"{precision} leaves the first and the last layer in fp32, and the model has {layers}: "
            "none would be rounded to FP8",
            "use precision=fp32, or a deeper model",
        )
    if multiples == Multiples():
        return
    hidden = model_config.get("hidden_size")
    if isinstance(hidden, int) and hidden % multiples.hidden:
        under = " with model.sequence_parallel=true" if multiples.hidden > 32 else ""
        yield Problem(
            "precision",
            f"{precision}{under} needs a hidden size that is a multiple of {multiples.hidden}, and "
            f"the model's is {hidden}",
            "use precision=bf16",
        )
    for name, size in cut_sizes(model_config).items():
        yield from _check_cut(config, name, size, multiples.features)


def cut_sizes(model_config: dict[str, Any]) -> dict[str, int]:
    """Sizes that tensor parallelism cuts, of linear layers, by what they are."""
    found: dict[str, int] = {}
    ffn = model_config.get("intermediate_size")
    if isinstance(ffn, int):
        found["FFN"] = ffn
    heads, hidden = model_config.get("num_attention_heads"), model_config.get("hidden_size")
    groups = model_config.get("num_key_value_heads") or heads
    if not (isinstance(heads, int) and isinstance(groups, int)):
        return found
    width = model_config.get("head_dim")
    if width is None and isinstance(hidden, int):
        width = hidden // heads
    if isinstance(width, int):
        found["queries"] = heads * width
        found["queries, keys and values"] = (heads + 2 * groups) * width
    return found


def _check_cut(config: RunConfig, name: str, size: int, multiple: int) -> Iterator[Problem]:
    tp = config.model.tensor_model_parallel_size
    if size % (tp * multiple) == 0:
        return
    fitting = [str(n) for n in range(1, tp) if tp % n == 0 and size % (n * multiple) == 0]
    share = f"{size} / {tp} ranks" if tp > 1 else f"{size}"
    yield Problem(
        TP if fitting else "precision",
        f"{config.precision} needs a multiple of {multiple} on every rank, and the size of the "
        f"model's {name} is {share}",
        f"choose one of {', '.join(fitting)}" if fitting else "use precision=bf16",
    )


def check_dynamic_rope(config: RunConfig, model_config: dict[str, Any]) -> Iterator[Problem]:
    """Rows that are filled up beyond the positions of a model with a dynamic rope scaling.

    There every frequency depends on the length of the longest row, filling included.
    """
    scaling = model_config.get("rope_parameters") or model_config.get("rope_scaling")
    longest = model_config.get("max_position_embeddings")
    if not (isinstance(scaling, dict) and isinstance(longest, int)):
        return
    if "dynamic" not in (scaling.get("rope_type"), scaling.get("type")):
        return
    model, data = config.model, config.data
    multiple = row_multiple(config, rows=1 if data.packing else 2 * model.micro_batch_size)
    # What fills a packed row up is a sequence of its own; what fills a sequence up, is not.
    own = sequence_multiple(model.context_parallel_size) if data.packing else multiple
    filled = up_to(own, data.max_length)
    filled = max(filled, multiple - 1) if data.packing else filled
    if data.max_length <= longest < filled:
        down = longest // multiple * multiple
        yield Problem(
            "data.max_length",
            f"rows are filled up to as much as {filled} positions here, and beyond the model's "
            f"{longest} its dynamic rope scaling depends on the filling",
            f"set it to {down} or less" if down and not data.packing else "use precision=bf16",
        )
