"""The table of metrics. Whatever measures, explains, prints or draws a metric asks here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from string import Formatter

from nemo_gdpo.config.evaluation import EvaluationConfig
from nemo_gdpo.evaluation.metrics.definitions import (
    DIVERGENCE_ROWS,
    DIVERSITY_ROWS,
    LENGTH_ROWS,
    QUALITY_ROWS,
    REWARD_ROWS,
    SAFETY_ROWS,
    WIN_RATE,
)
from nemo_gdpo.evaluation.metrics.metric import Metric, Need, Reading
from nemo_gdpo.evaluation.results import Headline

TABLE = (
    *DIVERSITY_ROWS,
    *REWARD_ROWS,
    *QUALITY_ROWS,
    *SAFETY_ROWS,
    WIN_RATE,
    *DIVERGENCE_ROWS,
    *LENGTH_ROWS,
)


def offered(evaluation: EvaluationConfig) -> frozenset[Need]:
    """Needs of metrics that the settings provide for."""
    found: set[Need] = {"responses"}
    if evaluation.encoder is not None:
        found |= {"encoder", "classes"}
    if evaluation.novelty.equivalence == "classifier":
        found.add("classes")
    if evaluation.reference_model is not None:
        found |= {"reference", "policy"}
    if evaluation.safety.toxicity is not None:
        found.add("toxicity")
    if evaluation.safety.entailment is not None:
        found.add("entailment")
    return frozenset(found)


def metrics_of(evaluation: EvaluationConfig) -> tuple[Metric, ...]:
    """The metrics of responses that the settings ask for, in the order of a report.

    Win rates are not among them: they belong to two runs, and have a separate section.
    """
    given = offered(evaluation)
    found: list[Metric] = []
    for over, group in groupby(TABLE, key=lambda row: row.over):
        rows = [row for row in group if row.needs in given]
        for parameters in over(evaluation):
            found += [row.instance(parameters) for row in rows]
    return tuple(found)


def headline(evaluation: EvaluationConfig) -> Headline:
    """The metrics that are put beside each other."""
    if evaluation.encoder is not None:
        diversity = "semantic_diversity"
    elif evaluation.distinct:
        diversity = f"distinct_{max(evaluation.distinct)}"
    else:
        diversity = "self_bleu"
    rewards = evaluation.rewards
    return Headline(
        diversity=diversity,
        quality=f"reward.{rewards[0].title}" if rewards else "valid",
        divergence=None if evaluation.reference_model is None else "kl",
    )


def reading_of(name: str) -> Reading | None:
    """The words for a metric by its name in evaluation.json; None for one that is not in the table.

    Of several rows whose metrics may have this name, the one that says most of it counts:
    `reward.x.best` is the best value of x, not the mean of a reward called `x.best`.
    """
    found = [(row, parsed) for row in TABLE if (parsed := row.parse(name)) is not None]
    if not found:
        return None
    row, arguments = min(found, key=lambda item: sum(map(len, item[1].values())))
    return row.reading_for(arguments)


def console_columns() -> frozenset[str]:
    """The metrics that have a column of the console table beside those of the headline."""
    return frozenset(name for row in TABLE for name in row.columns)


_SYMBOLS = {
    "n": "N",
    "vocabulary_size": "V",
    "test": "cosine or classifier",
    "reward": "NAME",
    "kind": "the reward",
}
"""Symbols that the docs use for the parameters of a row."""
_NEEDS: Mapping[Need, str] = {
    "responses": "",
    "encoder": "`encoder`",
    "classes": "`encoder` or `novelty.classifier`",
    "reference": "`reference_model`",
    "policy": "`reference_model`, `models`",
    "judge": "`judge`",
    "toxicity": "`safety.toxicity`",
    "entailment": "`safety.entailment`",
}
"""The settings of the section `evaluation`."""


def _general(template: str) -> str:
    parts = Formatter().parse(template)
    return "".join(text + (_SYMBOLS[key] if key else "") for text, key, _, _ in parts)


def as_markdown() -> str:
    """The table for the documentation, one row of Markdown for each row here."""
    lines = [
        "| metric | kind | better | unit | needs | what it is | trap |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in TABLE:
        better = "" if row.direction == "none" else row.direction
        cells = (
            f"`{_general(row.name)}`",
            row.kind,
            better,
            row.unit,
            _NEEDS[row.needs],
            _general(row.description),
            row.reading.trap,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
