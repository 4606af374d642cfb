"""Results whose every value is known, for arms that were never trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_gdpo.evaluation.results import (
    Flag,
    Headline,
    Interval,
    MetricInfo,
    Point,
    Results,
    Run,
    Sample,
    SampleResponses,
    Sampling,
)

METRICS = {
    "variety": MetricInfo("diversity", "higher", "", ""),
    "reward": MetricInfo("quality", "higher", "", ""),
    "kl": MetricInfo("divergence", "lower", "nats", ""),
    "length_words": MetricInfo("length", "none", "words", ""),
}
TEMPERATURES = (0.7, 1.0, 1.3)

Values = Sequence[float | None]


def results(
    arm: str,
    points: Sequence[Mapping[str, Values]],
    *,
    flags: Sequence[str] = (),
    flagged_at: Sequence[float] = TEMPERATURES,
    facts: Mapping[str, object] | None = None,
) -> Results:
    """One run, one mapping (metric -> a value for each prompt) a temperature.

    `flags` are set at the temperatures `flagged_at`.
    """
    made = []
    for temperature, metrics in zip(TEMPERATURES, points, strict=False):
        means = {}
        for name, values in metrics.items():
            known = [value for value in values if value is not None]
            means[name] = Interval(sum(known) / len(known), min(known), max(known), len(known))
        made.append(
            Point(
                Sampling(temperature, 1.0, 0.0, 0),
                len(next(iter(metrics.values()))),
                2,
                means,
                {name: list(values) for name, values in metrics.items()},
                {"responses": 4},
                [Flag(f, f"it is {f}") for f in flags if temperature in flagged_at],
            )
        )
    prompts = [f"p{n}" for n in range(made[0].num_prompts)]
    run = Run(arm, f"{arm}/generations", "a" * 64, dict(facts or {}), prompts, made)
    samples = [
        Sample(
            "p0", "Say something.", [SampleResponses(arm, made[0].sampling, ["x"], ["stop"], {})]
        )
    ]
    headline = Headline("variety", "reward", "kl")
    settings = {"runs": {arm: "x"}, "encoder": "e"}
    return Results({"python": "3"}, settings, METRICS, headline, [run], [], samples)


def sweep(
    reward: Sequence[float], variety: Sequence[float], *, prompts: int = 12, spread: float = 0.01
) -> list[dict[str, Values]]:
    """A point a temperature; prompts differ by a little, in the same way everywhere."""
    offsets = [spread * (n - (prompts - 1) / 2) for n in range(prompts)]
    return [
        {
            "reward": [r + o for o in offsets],
            "variety": [v - o for o in offsets],
            "kl": [0.1 + o * o for o in offsets],
            "length_words": [20.0] * prompts,
        }
        for r, v in zip(reward, variety, strict=True)
    ]
