"""An evaluation that never happened, with everything in it that is hard to show."""

from __future__ import annotations

import random

from nemo_gdpo.evaluation.results import (
    Comparison,
    Flag,
    Headline,
    Interval,
    MetricInfo,
    Point,
    Results,
    Run,
    Sample,
    SampleResponses,
)
from nemo_gdpo.generation.types import SamplingPoint

METRICS = {
    "semantic_diversity": MetricInfo("diversity", "higher", "", "1 - mean pairwise cosine"),
    "distinct_2": MetricInfo("diversity", "higher", "", "unique / all bigrams"),
    "self_bleu": MetricInfo("diversity", "lower", "0-100", "BLEU against the siblings"),
    "sentiment": MetricInfo("quality", "higher", "", "VADER compound"),
    "valid_fraction": MetricInfo("quality", "higher", "", "share of valid responses"),
    "mean_words": MetricInfo("length", "none", "words", "words a response"),
    "kl_per_token": MetricInfo("divergence", "lower", "nats", "exact KL to the reference a token"),
}
BASES = {
    # quality, diversity, words, KL at the first temperature
    "base": (0.16, 0.70, 24.0, 0.0),
    "dpo": (0.49, 0.62, 27.0, 0.30),
    "gdpo-tb-k8": (0.40, 0.68, 25.0, 0.22),
    "gdpo-released": (0.01, 0.32, 2.0, 1.90),
}
PROMPTS = ["p-1", "p-2", "p-3"]
HOSTILE = [
    "<script>document.title='owned'</script> & \"quoted\" </td>",
    "<img src=x onerror=\"document.title='owned'\">",
    "هذا فيلم رائع جدًا، ويستحق المشاهدة. \u202eevil",
    "🎬🍿 عالٍ 👩‍👩‍👧‍👦 fin",
    "w" * 400,
    "",
    "line one\nline two\n\n    indented",
    "</textarea></template>{{ 7*7 }} {% raw %} ${1+1}",
]


def interval(mean: float, half: float, n: int = 3) -> Interval:
    return Interval(mean, mean - half, mean + half, n)


def point(run: str, temperature: float, step: int) -> Point:
    quality, diversity, words, kl = BASES[run]
    means = {
        "semantic_diversity": diversity + 0.05 * step,
        "distinct_2": min(1.0, diversity + 0.15 + 0.04 * step),
        "self_bleu": 30.0 - 20 * diversity - 3 * step,
        "sentiment": quality - 0.04 * step,
        "valid_fraction": 1.0 - 0.05 * step,
        "mean_words": words + 2 * step,
        "kl_per_token": kl,
    }
    flags = (
        [
            Flag("repetitive", "61% of the responses repeat themselves; the limit is 20%"),
            Flag("short", "2.0 words a response; the reference's has 24.0"),
        ]
        if run == "gdpo-released"
        else []
    )
    if run == "base":
        del means["kl_per_token"]
    return Point(
        SamplingPoint(temperature, 1.0, 0.0, 0),
        num_prompts=3,
        num_samples=4,
        metrics={
            name: interval(value, 2.0 if value > 10 else 0.03) for name, value in means.items()
        },
        per_prompt={name: [value - 0.01, value, value + 0.01] for name, value in means.items()},
        counts={"responses": 12, "empty": 1, "finish.stop": 9, "finish.length": 3},
        flags=flags,
    )


def film_results(*, runs: dict[str, str] | None = None, hostile: bool = True) -> Results:
    """Four runs at three temperatures.

    Args:
        runs: name shown -> which of `BASES` it takes its figures from; None shows all by their own.
        hostile: whether the responses are meant to break a page.
    """
    shown = runs or {name: name for name in BASES}
    draw = random.Random(0)
    words = ["a", "film", "that", "was", "very", "fine", "dull"]
    plain = [" ".join(draw.choices(words, k=12)) for _ in range(4)]
    return Results(
        versions={"nemo_gdpo": "0.1.0", "python": "3.11.7", "sacrebleu": "2.6.0"},
        settings={"runs": {name: f"runs/{name}" for name in shown}, "bootstrap_resamples": 1000},
        metrics=METRICS,
        headline=Headline("semantic_diversity", "sentiment", "kl_per_token"),
        runs=[
            Run(
                name,
                generations=f"runs/{name}/generations",
                model_hash=f"{abs(number * 7919 + 11):064x}",
                facts={"objective": name.split("-")[0], "beta": 0.1, "seeds": [1, 2]},
                prompt_ids=PROMPTS,
                points=[point(base, t, step) for step, t in enumerate((0.7, 1.0, 1.3))],
            )
            for number, (name, base) in enumerate(shown.items())
        ],
        comparisons=[
            Comparison(
                "gdpo-tb-k8",
                SamplingPoint(),
                "dpo",
                SamplingPoint(),
                "judge-model",
                "the better film review",
                interval(0.45, 0.08),
                40,
                50,
                10,
                6,
                2,
                "judge/transcript.jsonl",
            )
        ]
        if runs is None
        else [],
        samples=[
            Sample(
                id=prompt,
                prompt=(
                    "Write a sentence about a film for the programme of a festival of short films."
                    if number
                    else [
                        {"role": "system", "content": "You are a critic. <b>Bold</b>"},
                        {"role": "user", "content": "Describe a film in one sentence."},
                    ]
                ),
                responses=[
                    SampleResponses(
                        name,
                        SamplingPoint(t, 1.0, 0.0, 0),
                        outputs=HOSTILE if hostile and t == 1.0 else plain,
                        finish_reasons=["stop"] * 7 + ["length"]
                        if hostile and t == 1.0
                        else ["stop"] * 4,
                        rewards={"sentiment": [0.25] * (8 if hostile and t == 1.0 else 4)},
                    )
                    for name in shown
                    for t in (0.7, 1.0, 1.3)
                ],
            )
            for number, prompt in enumerate(PROMPTS)
        ],
    )
