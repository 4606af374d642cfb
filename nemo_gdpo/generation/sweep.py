"""The sampling points of a sweep, and the checks of their values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from nemo_gdpo.config.generation import GenerationConfig
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.generation.types import SamplingPoint

MIN_TEMPERATURE = 0.01
"""vLLM raises lower temperatures to this, and says so in a log line only."""
MAX_TEMPERATURE = 2.0
"""The highest that vLLM and OpenAI's interface take."""


def sampling_points(config: GenerationConfig) -> tuple[SamplingPoint, ...]:
    """Every combination, temperature outermost, in the order of the lists."""
    return tuple(
        SamplingPoint(float(temperature), float(top_p), float(min_p), int(top_k))
        for temperature, top_p, min_p, top_k in itertools.product(
            config.temperature, config.top_p, config.min_p, config.top_k
        )
    )


def sweep_problems(config: GenerationConfig) -> list[Problem]:
    """Problems of a sweep: what cannot be honoured."""
    found: list[Problem] = []
    lists: dict[str, Sequence[float]] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "min_p": config.min_p,
        "top_k": config.top_k,
    }
    for name, values in lists.items():
        twice = sorted({value for value in values if list(values).count(value) > 1})
        if twice:
            found.append(
                Problem(f"generation.{name}", f"has {twice[0]} twice", "name each value once")
            )
    small = [value for value in config.temperature if 0 < value < MIN_TEMPERATURE]
    if small:
        found.append(
            Problem(
                "generation.temperature",
                f"{small[0]} is below {MIN_TEMPERATURE}, the lowest that vLLM samples at",
                "use 0 for the likeliest token, or a higher temperature",
            )
        )
    large = [value for value in config.temperature if value > MAX_TEMPERATURE]
    if large:
        found.append(
            Problem(
                "generation.temperature",
                f"{large[0]} is above {MAX_TEMPERATURE:g}, the highest that vLLM samples at",
                "use a lower temperature",
            )
        )
    if 0 in config.temperature:
        found += _greedy_problems(config, lists)
    return found


def _greedy_problems(config: GenerationConfig, lists: dict[str, Sequence[float]]) -> list[Problem]:
    found: list[Problem] = []
    if config.num_samples > 1:
        found.append(
            Problem(
                "generation.num_samples",
                f"{config.num_samples} answers at temperature 0 would be the same one "
                f"{config.num_samples} times",
                "set generation.num_samples=1, or take 0 out of generation.temperature and sample "
                "it into another output_dir",
            )
        )
    others = [name for name, values in lists.items() if name != "temperature" and len(values) > 1]
    if others:
        found.append(
            Problem(
                f"generation.{others[0]}",
                "is a list, which changes nothing at temperature 0: its points would be the same",
                "give one value, or take 0 out of generation.temperature",
            )
        )
    return found
