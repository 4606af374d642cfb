"""The type of a metric: a row of `nemo_gdpo.evaluation.metrics.table`, and what its function reads.

A row whose name has parameters in braces, such as `distinct_{n:d}`, stands for several metrics:
`over` says for which values the settings ask, and the same parameters fill the row's texts and go
to its function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from string import Formatter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nemo_gdpo.config.evaluation import EvaluationConfig
from nemo_gdpo.evaluation.metrics.divergence import SequenceScores
from nemo_gdpo.evaluation.metrics.validity import Validity
from nemo_gdpo.evaluation.results import Direction, Kind, MetricInfo
from nemo_gdpo.generation.rows import Row

Need = Literal[
    "responses", "encoder", "classes", "reference", "policy", "judge", "toxicity", "entailment"
]
"""What a metric is computed from, beside the responses themselves."""


@dataclass(frozen=True)
class PromptResponses:
    """All that is known about the K responses to one prompt at one sampling point."""

    row: Row
    checks: Sequence[Validity]
    """One for each response."""
    rewards: Mapping[str, Sequence[float | None]]
    """Reward's name -> one value for each response; None where it could not be scored. The
    probabilities of `nemo_gdpo.evaluation.metrics.safety` are there as well."""
    embeddings_KD: npt.NDArray[np.float32] | None = None
    """None without an encoder, for a single response (there is nothing to compare it with), and
    where the encoder cannot read most of the responses."""
    cosine_KK: npt.NDArray[np.float64] | None = None
    """Cosines of the embeddings; None as they are."""
    classes: Sequence[int] | None = None
    """NoveltyBench's class of each one; None where nothing tells them, or for a single one."""
    scores: Sequence[SequenceScores] = ()
    """Under reference and policy, one for each response that has a token."""


@dataclass(frozen=True)
class Parameters:
    """One metric of a row."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the row's function; they also fill its texts."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What else fills its texts."""


@dataclass(frozen=True)
class Reading:
    """A metric in plain words."""

    meaning: str
    trap: str
    """How it misleads."""


def once(evaluation: EvaluationConfig) -> Sequence[Parameters]:
    """A row that stands for one metric."""
    del evaluation
    return (Parameters(),)


@dataclass(frozen=True)
class Metric:
    """A row of the table, or one metric of it."""

    name: str
    """The key in evaluation.json, such as `vendi`."""
    kind: Kind
    direction: Direction
    """Which way is better; `none` where neither is."""
    unit: str
    """Empty for a plain number."""
    description: str
    """One line: formula and source."""
    reading: Reading
    function: Callable[..., float | None]
    """(PromptResponses, parameters as keywords) -> value; None where it is not defined. The one of
    win rates reads a judge's outcomes instead."""
    needs: Need = "responses"
    columns: tuple[str, ...] = ()
    """Columns of the console table: names of the row's metrics, which are the headings. Metrics of
    the headline stand there in any case."""
    log_interval: bool = False
    """Whether mean and interval are taken of the logarithms: one prompt of noise would otherwise
    decide the mean of all."""
    over: Callable[[EvaluationConfig], Sequence[Parameters]] = once
    """The metrics of this row for which the settings ask."""
    own_readings: Mapping[str, Reading] = field(default_factory=dict)
    """Value of a parameter -> words that are truer for it than `reading`."""

    def instance(self, parameters: Parameters) -> Metric:
        """One metric of this row."""
        words = {**parameters.arguments, **parameters.words}
        return replace(
            self,
            name=self.name.format(**words),
            description=self.description.format(**words),
            reading=self.reading_for(parameters.arguments),
            function=partial(self.function, **parameters.arguments),
            over=once,
        )

    def reading_for(self, arguments: Mapping[str, Any]) -> Reading:
        """The words for one metric of this row."""
        own = (self.own_readings.get(str(value)) for value in arguments.values())
        return next((words for words in own if words is not None), self.reading)

    def parse(self, name: str) -> dict[str, str] | None:
        """The parameters in the name of one of this row's metrics; None for another name."""
        pattern = "".join(
            re.escape(literal) + (f"(?P<{key}>{r'[0-9]+' if kind == 'd' else '.+'})" if key else "")
            for literal, key, kind, _ in Formatter().parse(self.name)
        )
        match = re.fullmatch(pattern, name)
        return None if match is None else match.groupdict()

    def info(self) -> MetricInfo:
        """Entry of evaluation.json about it."""
        return MetricInfo(self.kind, self.direction, self.unit, self.description)
