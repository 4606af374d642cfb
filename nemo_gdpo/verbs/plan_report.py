"""A plan as one mapping of plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.objectives import OBJECTIVES
from nemo_gdpo.plan.disk import disk_of
from nemo_gdpo.plan.memory import RECOMPUTE, Memory, activation_bytes, fullest
from nemo_gdpo.plan.speed import passes, share_of_peak, useful_passes
from nemo_gdpo.verbs.plan_changes import layout_words, next_better
from nemo_gdpo.verbs.plan_layouts import Planner, Prediction

if TYPE_CHECKING:
    from nemo_gdpo.verbs.plan import Pairs

ASSUMED_PAIRS = 10_000
"""Of an epoch, where the pairs are not known."""
PARTS = (
    "weights", "fp8_copies", "gradients", "optimizer", "reference", "activations", "head",
    "buffers", "reserve",
)  # fmt: skip
ROWS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("padded", {"data.packing": False, "data.pack_tokens": None, "data.prefix_sharing": False}),
    ("packed", {"data.packing": True, "data.prefix_sharing": False}),
    ("shared", {"data.packing": True, "data.prefix_sharing": True}),
)
"""Ways of batching: padded, packed, and packed with each prompt once for both responses."""


def report_of(
    planner: Planner,
    shown: Prediction,
    layouts: Sequence[Prediction],
    pairs: Pairs,
    *,
    own: bool,
    wrong: Sequence[Problem],
) -> dict[str, Any]:
    """Everything that is predicted, as plain data.

    Args:
        planner: model, data, cluster.
        shown: the run's own layout, or the best where that cannot be had.
        layouts: the best ones.
        pairs: whose lengths count.
        own: `shown` is the run's own.
        wrong: why the own layout cannot be had.
    """
    cluster, config = planner.cluster, shown.config
    better = next_better(planner, shown, layouts)
    count = ASSUMED_PAIRS if pairs.assumed else len(pairs.data)
    return {
        "kind": "predictions, computed from sizes and data sheets; nothing is measured",
        "hardware": {
            "device": cluster.device.name,
            "count": cluster.count,
            "memory_gb": cluster.device.memory,
            "peak_tflops": cluster.device.peak.of(config.precision),
            "assumed_share_of_peak": share_of_peak(config.precision),
        },
        "model": {
            "source": planner.architecture.source,
            "parameters": planner.shape.parameters,
        },
        "layout": layout_words(shown),
        "layout_is_configured": own,
        "problems_of_configured": [str(problem) for problem in wrong],
        "mesh": _mesh(shown),
        "stages": [_memory(memory) for memory in shown.stages],
        "fullest": _memory(fullest(shown.stages)),
        "fits": shown.fits,
        "host_gb_a_node": _gb(cluster.per_node * max(one.host for one in shown.stages)),
        "loading_gb": _gb(max(one.loading for one in shown.stages)),
        "left_gb": _gb(shown.memory - fullest(shown.stages).total),
        "activations_gb": _activations(planner, shown),
        "flops_per_token": _flops_per_token(shown),
        "data": _data(shown, pairs, count),
        "rows": _rows(planner, shown, config, pairs, count),
        "disk_gb": _disk(planner, shown, count),
        "layouts": [_layout(one) for one in layouts],
        "next": None if better is None else _next(shown, *better),
    }


def _gb(value: float) -> float:
    return round(value / 1e9, 2)


def _figures(value: float) -> float:
    """Four figures: what is small is not rounded to nothing."""
    return float(f"{value:.4g}")


def _mesh(one: Prediction) -> dict[str, Any]:
    setup = one.setup
    return {
        "tensor": setup.tensor,
        "pipeline": setup.pipeline,
        "context": setup.context,
        "data": setup.data,
        "micro_batch_size": one.config.model.micro_batch_size,
        "recompute": setup.recompute or "none",
    }


def _memory(memory: Memory) -> dict[str, float]:
    return {name: _gb(vars(memory)[name]) for name in PARTS} | {"total": _gb(memory.total)}


def _activations(planner: Planner, shown: Prediction) -> dict[str, float]:
    """Of the worst stage, by recomputation."""
    found = {}
    for recompute in RECOMPUTE:
        setup = replace(shown.setup, recompute=recompute)
        stages = range(setup.pipeline)
        found[recompute or "none"] = _gb(
            max(activation_bytes(planner.shape, setup, stage) for stage in stages)
        )
    return found


def _flops_per_token(shown: Prediction) -> dict[str, float]:
    work = shown.work
    forward = work.flops / work.tokens
    return {
        "forward": forward,
        "update": useful_passes(shown.setup, shown.attention) * forward,
    }


def _data(shown: Prediction, pairs: Pairs, count: int) -> dict[str, Any]:
    work = shown.work
    return {
        "source": pairs.source,
        "assumed": pairs.assumed,
        "pairs": count,
        "tokens_a_pair": round(work.tokens / work.pairs, 1),
        "response_tokens_a_pair": round(work.labels / work.pairs, 1),
        "tokens_with_shared_prompts": round((work.tokens - work.repeated) / work.tokens, 3),
        "updates": updates_of(shown.config, count),
    }


def updates_of(config: RunConfig, pairs: int) -> int:
    """Updates of the whole run: of its epochs, or `max_steps` if that is less."""
    trainer, size = config.trainer, config.model.global_batch_size
    limits = [] if trainer.max_steps is None else [trainer.max_steps]
    if trainer.max_epochs is not None:
        limits.append(max(1, math.floor(trainer.max_epochs * pairs / size)))
    return min(limits)


def _rows(
    planner: Planner, shown: Prediction, config: RunConfig, pairs: Pairs, count: int
) -> dict[str, Any]:
    """Speed with each way of batching, all else alike."""
    found: dict[str, Any] = {}
    for name, changes in ROWS:
        other = planner.placed(config, changes)
        wrong = planner.problems(other)
        found[name] = (
            {"problem": str(wrong[0])} if wrong else _speed(planner, planner.predict(other), count)
        )
    return found


def _speed(planner: Planner, one: Prediction, count: int) -> dict[str, Any]:
    work, updates = one.work, updates_of(one.config, count)
    found: dict[str, Any] = {"slots_a_token": round(work.slots / work.tokens, 3), "fits": one.fits}
    if one.step is None:
        return found
    seconds = one.step.seconds
    reference = one.config.reference == "cache"
    # A forward pass over all pairs once; more passes over them do not repeat it.
    done = passes(planner.shape, one.setup, live_reference=False, attention=one.attention)
    cached = seconds / done * count / work.pairs if reference else 0.0
    hours = (updates * seconds + cached) / 3600
    return found | {
        "tokens_per_second": round(one.tokens_per_second),
        "tokens_per_second_per_gpu": round(one.tokens_per_second / planner.cluster.count),
        "update_seconds": _figures(seconds),
        "of_it_bubble": round(one.step.bubble / seconds, 3),
        "of_it_communication": round(one.step.communication / seconds, 3),
        "reference_hours": _figures(cached / 3600),
        "hours": _figures(hours),
        "gpu_hours": _figures(hours * planner.cluster.count),
    }


def _disk(planner: Planner, shown: Prediction, count: int) -> dict[str, float]:
    config = shown.config
    cached = config.reference == "cache"
    labels = shown.work.labels / shown.work.pairs * count if cached else 0.0
    disk = disk_of(
        planner.shape,
        adapters=shown.setup.adapters,
        precision=config.precision,
        distributed_optimizer=config.optim.use_distributed_optimizer,
        kept=config.trainer.keep_checkpoints,
        labels=labels,
        columns=2 if OBJECTIVES[config.objective.name].needs_eos else 1,
    )
    return {name: _gb(value) for name, value in vars(disk).items()}


def _layout(one: Prediction) -> dict[str, Any]:
    return {
        **_mesh(one),
        "memory_gb": _gb(fullest(one.stages).total),
        "tokens_per_second": None if one.step is None else round(one.tokens_per_second),
        "overrides": layout_words(one),
    }


def _next(shown: Prediction, words: str, better: Prediction) -> dict[str, Any]:
    """The change, and tokens/s over those now; null where the run does not fit now."""
    gains = shown.fits and shown.tokens_per_second > 0
    gain = round(better.tokens_per_second / shown.tokens_per_second, 2) if gains else None
    return {"change": words, "gain": gain}
