"""What the rounds of all arms say together: a table, and whether the arms trained the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common import spread

Round = Mapping[str, Mapping[str, Any]]
"""Arm -> its result, or `{"failed": why}`."""
CHECKED = ("loss", "rewards/margins", "logps/chosen", "logps/rejected")
FIRST = 3
"""Updates whose losses are printed."""


def seconds_a_pair(found: Mapping[str, Any], clock: str, settings: Mapping[str, Any]) -> float:
    """Mean over the timed updates.

    Args:
        found: of an arm in a round.
        clock: `wall` or `cpu`.
        settings: of the workload.
    """
    timed = found["steps"][settings["warm_ups"] :]
    return float(sum(step[clock] for step in timed) / (len(timed) * settings["batch"]))


def floor_of(found: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    """Seconds a pair that the timed pairs' FLOPs take at the rate of the process's own GEMMs."""
    pairs = settings["batch"] * (settings["updates"] - settings["warm_ups"])
    return float(found["floor"]["flops"] / found["floor"]["flops_a_second"] / pairs)


def _tokens_a_second(found: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    timed = found["steps"][settings["warm_ups"] :]
    return float(sum(step["tokens"] for step in timed) / sum(step["wall"] for step in timed))


def names(rounds: Sequence[Round]) -> list[str]:
    """Arms in the order in which they ran."""
    return list(dict.fromkeys(arm for one in rounds for arm in one))


def _results(rounds: Sequence[Round], arm: str) -> list[Mapping[str, Any]]:
    return [one[arm] for one in rounds if "steps" in one.get(arm, {})]


def _rounds_of(rounds: Sequence[Round], *arms: str) -> list[Round]:
    """Those in which all of these arms ran."""
    return [one for one in rounds if all("steps" in one.get(arm, {}) for arm in arms)]


def _ratios(
    rounds: Sequence[Round], arm: str, base: str, of: Callable[[Mapping[str, Any]], float]
) -> list[float]:
    """`base` over `arm`, round by round."""
    return [of(one[base]) / of(one[arm]) for one in _rounds_of(rounds, arm, base)]


def table(rounds: Sequence[Round], settings: Mapping[str, Any]) -> Iterator[str]:
    """Lines of Markdown: a row an arm, medians and [least, most] over the rounds.

    Ratios are to the first arm, round by round, by CPU seconds on a CPU and by time on a GPU.
    """
    arms = names(rounds)
    on_cpu = settings["device"] == "cpu"
    clock, unit = ("cpu", "CPU-s a pair") if on_cpu else ("wall", "GPU-s a pair")
    yield (
        f"| | pairs/s | {unit} | times {arms[0]} | useful tokens/s | peak, GiB | memory, of "
        f"{arms[0]} | reference before, {unit} | times the floor | first losses |"
    )
    yield "|---|" + "---|" * 9

    def cost(found: Mapping[str, Any]) -> float:
        return seconds_a_pair(found, clock, settings)

    for arm in arms:
        found = _results(rounds, arm)
        if not found:
            failed = next(one[arm]["failed"] for one in rounds if arm in one)
            yield f"| {arm} | failed: {failed} |" + " |" * 8
            continue
        pairs = settings["batch"] * settings["updates"]
        before = [one["reference"][clock] / pairs for one in found if one["reference"]]
        memory = _ratios(rounds, arm, arms[0], lambda one: one["peak_bytes"])
        cells = [
            arm,
            spread([1 / seconds_a_pair(one, "wall", settings) for one in found]),
            spread([cost(one) for one in found]),
            spread(_ratios(rounds, arm, arms[0], cost)),
            spread([_tokens_a_second(one, settings) for one in found], ",.0f"),
            spread([one["peak_bytes"] / 2**30 for one in found]),
            spread([1 / ratio for ratio in memory], ".2f"),
            spread(before),
            spread([cost(one) / floor_of(one, settings) for one in found if "floor" in one]),
            ", ".join(f"{step['loss']:.6f}" for step in found[0]["steps"][:FIRST]),
        ]
        yield f"| {' | '.join(cells)} |"


def differences(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Arm -> what -> greatest difference from the first arm in any update, of arms that ran.

    Log-probs, which are sums over a response, differ relative to their size.
    """
    arms = names(rounds)
    found: dict[str, dict[str, float]] = {}
    for arm in arms[1:]:
        pairs = [
            (own, other)
            for one in _rounds_of(rounds, arm, arms[0])
            for own, other in zip(one[arm]["steps"], one[arms[0]]["steps"], strict=True)
        ]
        if pairs:
            found[arm] = {
                what: max(_gap(own, other, what) for own, other in pairs) for what in CHECKED
            }
    return found


def _gap(own: Mapping[str, float], other: Mapping[str, float], what: str) -> float:
    gap = abs(own[what] - other[what]) / max(1.0, abs(other[what]))
    return gap if gap == gap else float("inf")


def disagreements(rounds: Sequence[Round], tolerance: float) -> Iterator[str]:
    """Why the arms did not all train the same; nothing when they did.

    Args:
        rounds: of all arms.
        tolerance: for `differences`; tokens must be equal.
    """
    arms = names(rounds)
    for arm in arms:
        failed = [one[arm]["failed"] for one in rounds if "failed" in one.get(arm, {})]
        if failed:
            yield f"{arm}: failed in {len(failed)} of {len(rounds)} rounds: {failed[0]}"
    for arm, gaps in differences(rounds).items():
        for what, gap in gaps.items():
            if gap > tolerance:
                yield f"{arm}: {what} differs from {arms[0]} by {gap:.2g}, more than {tolerance:g}"
    for arm in arms[1:]:
        for one in _rounds_of(rounds, arm, arms[0]):
            own, other = ([step["tokens"] for step in one[it]["steps"]] for it in (arm, arms[0]))
            if own != other:
                yield f"{arm}: {own} tokens an update, {arms[0]} has {other}"
                break
