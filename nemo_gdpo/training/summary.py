"""The end of a run in a few lines and in `summary.json`: what came of it, and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.io.files import write_json
from nemo_gdpo.models.preference_model import LOSS
from nemo_gdpo.precisions import REHEARSAL, described
from nemo_gdpo.progress import duration
from nemo_gdpo.training.clock import by_stage
from nemo_gdpo.training.console import shown
from nemo_gdpo.training.metrics import (
    MFU,
    STEP_SECONDS,
    TFLOPS_PER_GPU,
    TIMING,
    TOKENS_PER_SECOND_PER_GPU,
)

SUMMARY = "summary.json"
VALIDATION = "val/"


def validations(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]] | None:
    """The best validation, by its loss, and the last: `{"best": {"step": ..., ...}, "last": ...}`.

    Args:
        lines: of metrics.jsonl. A `step` here is the number of updates made before, as in the names
            of checkpoints.

    Returns:
        None where there was no validation.
    """
    found = [
        {"step": line["step"] + 1}
        | {
            name.removeprefix(VALIDATION): value
            for name, value in line.items()
            if name.startswith(VALIDATION)
        }
        for line in lines
        if VALIDATION + LOSS in line
    ]
    if not found:
        return None
    return {"best": min(found, key=lambda one: float(one[LOSS])), "last": found[-1]}


def last_step(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last update's numbers, without those of the machine and of a validation."""
    if not lines:
        return {}
    return {
        name: value
        for name, value in lines[-1].items()
        if name not in TIMING and not name.startswith(VALIDATION)
    }


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean of a rate over the timed updates, weighted by their time; None where one lacks it."""
    timed = [line for line in lines if STEP_SECONDS in line]
    seconds = sum(line[STEP_SECONDS] for line in timed)
    if not seconds or any(name not in line for line in timed):
        return None
    return float(sum(line[name] * line[STEP_SECONDS] for line in timed) / seconds)


@dataclass(frozen=True)
class Ending:
    """Where a run stands when its summary is made."""

    outcome: str
    """`done` or `stopped`."""
    total_steps: int
    objective: str
    precision: str
    """Value of the key."""
    why_no_mfu: str
    """One line; empty where there is one."""
    checkpoint: Path | None
    """The newest, if there is one."""


def summarise(
    ending: Ending,
    lines: Sequence[Mapping[str, Any]],
    starts: Sequence[Mapping[str, Any]],
    output_dir: Path,
) -> dict[str, Any]:
    """The summary, as plain JSON.

    Args:
        ending: how it ended.
        lines: of metrics.jsonl.
        starts: of the run's clock, over all its starts.
        output_dir: of the run.
    """
    last = last_step(lines)
    seconds = {stage: round(value, 1) for stage, value in by_stage(starts).items()}
    places = {
        "hf": output_dir / "hf",
        "nemo": output_dir / "model.nemo",
        "metrics": output_dir / "metrics.jsonl",
        "logs": output_dir / "logs",
        "configuration": output_dir / "config.yaml",
    }
    return {
        "outcome": ending.outcome,
        "precision": described(ending.precision),
        "steps": last["step"] + 1 if last else 0,
        "of_steps": ending.total_steps,
        "pairs": last.get("consumed_pairs", 0),
        "tokens": last.get("num_tokens", 0),
        "epochs": last.get("epoch", 0.0),
        "label_queries": last.get(f"{ending.objective}/queries_total"),
        "last_step": {name: value for name, value in last.items() if name != "step"},
        "validation": validations(lines),
        "seconds": {"total": round(sum(seconds.values()), 1), "by_stage": seconds},
        "starts": list(starts),
        "speed": {
            "tokens_per_second_per_gpu": _mean(lines, TOKENS_PER_SECOND_PER_GPU),
            "model_tflops_per_gpu": _mean(lines, TFLOPS_PER_GPU),
            "mfu": _mean(lines, MFU),
            "why_no_mfu": ending.why_no_mfu or None,
        },
        "output_dir": str(output_dir),
        "checkpoint": _if_there(ending.checkpoint),
        **{name: _if_there(path) for name, path in places.items()},
    }


def _if_there(path: Path | None) -> str | None:
    return str(path) if path is not None and path.exists() else None


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of a summary."""
    yield f"{summary['outcome']}: {summary['steps']} of {summary['of_steps']} steps"
    if REHEARSAL in summary["precision"]:
        yield f"  precision    {summary['precision']}"
    queries = summary["label_queries"]
    yield (
        f"  seen         {summary['pairs']} pairs ({summary['epochs']:.2f} epochs), "
        f"{summary['tokens']} tokens"
        + ("" if queries is None else f", {queries:.0f} label queries")
    )
    if summary["last_step"]:
        yield f"  last step    {shown(summary['last_step'])}"
    for which, found in (summary["validation"] or {}).items():
        yield f"  {which + ' val.':<12} {shown(found)} (after {found['step']} steps)"
    yield from _time_lines(summary)
    for name in ("checkpoint", "hf", "nemo", "metrics", "logs"):
        if summary[name] is not None:
            yield f"  {name:<12} {summary[name]}"


def _time_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    seconds, count = summary["seconds"], len(summary["starts"])
    parts = ", ".join(f"{stage} {duration(value)}" for stage, value in seconds["by_stage"].items())
    starts = "" if count < 2 else f" in {count} starts"
    yield f"  wall time    {duration(seconds['total'])}{starts}: {parts}"
    speed = summary["speed"]
    if speed["tokens_per_second_per_gpu"] is not None:
        mfu = (
            f"no MFU ({speed['why_no_mfu'] or 'some steps have none'})"
            if speed["mfu"] is None
            else f"{speed['mfu']:.1%} MFU"
        )
        yield (
            f"  per device   {speed['tokens_per_second_per_gpu']:.0f} tokens/s, "
            f"{speed['model_tflops_per_gpu'] or 0.0:.3g} TFLOP/s, {mfu}"
        )


def write_summary(summary: Mapping[str, Any], output_dir: Path) -> None:
    """Write `summary.json`.

    Raises:
        OSError: it cannot be written.
        ValueError: a number is not finite.
    """
    write_json(output_dir / SUMMARY, summary)


def end_lines(
    ending: Ending,
    lines: Sequence[Mapping[str, Any]],
    starts: Sequence[Mapping[str, Any]],
    output_dir: Path,
) -> Iterator[str]:
    """What a run says at its end, and writes down as it does. No disk makes it a failure.

    Args:
        ending: how it ended.
        lines: of `metrics.jsonl`.
        starts: of the run (`RunClock.starts`).
        output_dir: of the run.
    """
    summary = summarise(ending, lines, starts, output_dir)
    yield from summary_lines(summary)
    try:
        write_summary(summary, output_dir)
    except (OSError, ValueError) as error:
        yield f"{output_dir / SUMMARY} could not be written ({error})"
