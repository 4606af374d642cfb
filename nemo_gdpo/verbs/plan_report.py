"""A plan as one mapping, and as text."""

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
from nemo_gdpo.plan.speed import share_of_peak
from nemo_gdpo.training.throughput import FORWARD_AND_BACKWARD
from nemo_gdpo.verbs.plan_layouts import (
    Planner,
    Prediction,
    layout_words,
    next_better,
)

if TYPE_CHECKING:
    from nemo_gdpo.verbs.plan import Pairs

ASSUMED_PAIRS = 10_000
"""Of an epoch, where the pairs are not known."""
PARTS = (
    "weights", "fp8_copies", "gradients", "optimizer", "reference", "activations", "head",
    "buffers", "reserve",
)  # fmt: skip


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
            "peak_tflops": cluster.device.peak(config.precision),
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
    useful = FORWARD_AND_BACKWARD * work.flops / work.tokens
    return {"forward": work.flops / work.tokens, "update": useful}


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
    """Speed with padded and with packed rows, all else alike."""
    found: dict[str, Any] = {}
    for name, packing in (("padded", False), ("packed", True)):
        changes = {"data.packing": packing} | ({} if packing else {"data.pack_tokens": None})
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
    cached = seconds / FORWARD_AND_BACKWARD * count / work.pairs if reference else 0.0
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
        "tokens_per_second": round(one.tokens_per_second),
        "overrides": layout_words(one),
    }


def _next(shown: Prediction, words: str, better: Prediction) -> dict[str, Any]:
    """The change, and tokens/s over those now; null where the run does not fit now."""
    gains = shown.fits and shown.tokens_per_second > 0
    gain = round(better.tokens_per_second / shown.tokens_per_second, 2) if gains else None
    return {"change": words, "gain": gain}


def as_text(report: Mapping[str, Any]) -> str:
    """A report for people: the same numbers, in tables."""
    hardware, model, data, mesh = (report[k] for k in ("hardware", "model", "data", "mesh"))
    lines = [
        "PREDICTIONS, computed from sizes and data sheets; nothing is measured",
        f"hardware   {hardware['device']} x {hardware['count']}, {hardware['memory_gb']} GB each",
        f"model      {model['parameters']:,} parameters ({model['source']})",
        f"mesh       TP{mesh['tensor']} x PP{mesh['pipeline']} x CP{mesh['context']} x "
        f"DP{mesh['data']}, micro-batch {mesh['micro_batch_size']}, recompute {mesh['recompute']}",
        *_told_of_layout(report),
        "",
        *_memory_lines(report),
        "",
        f"data       {data['source']}",
        f"           {data['pairs']:,} pairs, {data['tokens_a_pair']:,} tokens each, "
        f"{data['response_tokens_a_pair']:,} of them responses; {data['updates']:,} updates",
        f"           with each prompt once for both responses, "
        f"{data['tokens_with_shared_prompts']:.0%} of the tokens would be left",
        f"FLOPs      {report['flops_per_token']['update']:.3g} a token and update, "
        "of real tokens; the head at responses only",
        *_speed_lines(report),
        "",
        *_disk_lines(report),
        "",
        *_layout_lines(report),
    ]
    return "\n".join(lines)


def _told_of_layout(report: Mapping[str, Any]) -> list[str]:
    if report["layout_is_configured"]:
        return []
    wrong = [f"           not as configured: {text}" for text in report["problems_of_configured"]]
    return [*wrong, f"           but {report['layout']}"]


def _memory_lines(report: Mapping[str, Any]) -> list[str]:
    stages = report["stages"]
    kept = report["activations_gb"]
    names = [f"stage {number}" for number in range(len(stages))]
    head = f"{'GB a rank':<16}" + "".join(f"{name:>10}" for name in names)
    rows = [
        f"{part.replace('_', ' '):<16}" + "".join(f"{stage[part]:>10.2f}" for stage in stages)
        for part in (*PARTS, "total")
        if any(stage[part] for stage in stages)
    ]
    left = report["left_gb"]
    verdict = (
        f"fits, {left:.1f} GB left" if report["fits"] else f"DOES NOT FIT, {-left:.1f} GB over"
    )
    choices = ", ".join(f"{name} {value:.2f}" for name, value in kept.items())
    return [head, *rows, f"fullest stage: {verdict}", f"activations by recomputation: {choices}"]


def _speed_lines(report: Mapping[str, Any]) -> list[str]:
    share, peak = report["hardware"]["assumed_share_of_peak"], report["hardware"]["peak_tflops"]
    if share is None:
        rows = [f"{n} {r.get('slots_a_token', '-')}" for n, r in report["rows"].items()]
        told = f"positions a token: {', '.join(rows)}"
        return [told, "speed      is not predicted for fp32: nothing is published to go by"]
    lines = [
        f"speed      at {share:.0%} of {peak:,.0f} TFLOP/s, the share of published runs; "
        "communication on top",
        f"{'rows':<10}{'positions':>10}{'tokens/s':>12}{'a GPU':>9}{'s/update':>10}{'bubble':>8}"
        f"{'comm.':>7}{'hours':>9}{'GPU-hours':>11}",
    ]
    for name, row in report["rows"].items():
        if "problem" in row:
            lines.append(f"{name:<10}{row['problem']}")
            continue
        lines.append(
            f"{name:<10}{row['slots_a_token']:>10.2f}{row['tokens_per_second']:>12,}"
            f"{row['tokens_per_second_per_gpu']:>9,}{row['update_seconds']:>10.2f}"
            f"{row['of_it_bubble']:>8.0%}{row['of_it_communication']:>7.0%}{row['hours']:>9.2f}"
            f"{row['gpu_hours']:>11,.1f}"
        )
    return [
        *lines,
        "hours: all updates and the reference's cache, without start, validation, saving",
    ]


def _disk_lines(report: Mapping[str, Any]) -> list[str]:
    disk = report["disk_gb"]
    return [
        f"disk       checkpoint {disk['checkpoint']:,.1f} GB, room {disk['room']:,.1f} GB; "
        f"reference cache {disk['reference']:,.2f} GB; export {disk['export']:,.1f} GB"
    ]


def _layout_lines(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "best layouts that fit, by predicted tokens/s",
        f"{'TP':>4}{'PP':>4}{'CP':>4}{'DP':>5}{'micro':>7}{'recompute':>11}{'GB':>8}"
        f"{'tokens/s':>12}",
    ]
    lines += [
        f"{one['tensor']:>4}{one['pipeline']:>4}{one['context']:>4}{one['data']:>5}"
        f"{one['micro_batch_size']:>7}{one['recompute']:>11}{one['memory_gb']:>8.1f}"
        f"{one['tokens_per_second']:>12,}"
        for one in report["layouts"]
    ]
    better = report["next"]
    if better is None:
        told = "nothing that is known here gains 2 % and leaves the trajectory as it is"
    elif better["gain"] is None:
        told = f"{better['change']} (would fit)"
    else:
        told = f"{better['change']} ({better['gain']:.2f} x tokens/s)"
    return [*lines, f"next better: {told}"]
