"""The results of an evaluation: every number, in one versioned JSON file that the report reads.

The dataclasses below are the file `output_dir/evaluation.json`, field for field. Reading is strict:
an unknown field, a number that is text, a value that is not finite or a list of another length than
its prompts is an error and never a guess. What a metric could not say about a prompt is null.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.rows import StoredPrompt
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.files import write_output

SCHEMA = 1
FILE_NAME = "evaluation.json"

Kind = Literal["diversity", "quality", "length", "divergence"]
Direction = Literal["higher", "lower", "none"]

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class MetricInfo:
    """Description of a metric, so that a table or a plot needs no separate list of names."""

    __pydantic_config__ = _STRICT

    kind: Kind
    direction: Direction
    """Which way is better; `none` where neither is (a length)."""
    unit: str
    """Empty for a plain number; otherwise `nats`, `words`, `0-100`, ..."""
    description: str
    """One line: formula and source."""


@dataclass(frozen=True)
class Interval:
    """A mean over `n` prompts with its bootstrap interval."""

    __pydantic_config__ = _STRICT

    mean: float
    low: float
    high: float
    n: int
    """Prompts that had a value; the others are null in `per_prompt`."""


def _complete(value: Any) -> Any:
    """Refuse an object that lacks a field: the defaults of `SamplingPoint` are not for a file."""
    wanted = {item.name for item in fields(SamplingPoint)}
    if isinstance(value, dict) and not wanted <= set(value):
        raise ValueError(f"{', '.join(sorted(wanted - set(value)))} missing")
    return value


StoredSampling = Annotated[SamplingPoint, BeforeValidator(_complete)]
Sampling = SamplingPoint
"""The sampling point of generations; the name that readers of this file use."""


@dataclass(frozen=True)
class Flag:
    """A reason why the diversity of a point must not be taken at face value."""

    __pydantic_config__ = _STRICT

    name: str
    """`invalid`, `repetitive`, `perplexity`, ..."""
    message: str
    """One line for a reader, with the figure and the limit."""


@dataclass(frozen=True)
class Unscored:
    """A response without a reward."""

    __pydantic_config__ = _STRICT

    id: str
    """Of its prompt."""
    response: int
    """Its number, from 1."""
    reward: str
    reason: str
    """One line."""


@dataclass(frozen=True)
class Point:
    """One run at one sampling setting."""

    __pydantic_config__ = _STRICT

    sampling: StoredSampling
    num_prompts: int
    num_samples: int
    """Responses to each prompt."""
    metrics: dict[str, Interval]
    """Absent where no prompt had a value."""
    per_prompt: dict[str, list[float | None]]
    """Metric -> one value a prompt, in the order of the run's `prompt_ids`."""
    counts: dict[str, int]
    """`responses`, `empty`, `unprintable`, `finish.stop`, `finish.length`, ..."""
    flags: list[Flag] = field(default_factory=list)
    unscored: list[Unscored] = field(default_factory=list)
    """Responses that a reward could not score; it has no value for their prompts."""


@dataclass(frozen=True)
class Run:
    """One model."""

    __pydantic_config__ = _STRICT

    name: str
    generations: str
    """The directory its responses were read from."""
    model_hash: str
    facts: dict[str, Any]
    """What is known about the model: objective, hyper-parameters, queries asked; free."""
    prompt_ids: list[str]
    points: list[Point]


@dataclass(frozen=True)
class Undecided:
    """A pair without a verdict."""

    __pydantic_config__ = _STRICT

    id: str
    """Of its prompt."""
    sample: int
    """Which of the run's responses, from 0."""
    outcome: str
    """`refused`, `cut`, `failed` or `unparsable`."""
    reason: str
    """One line."""


@dataclass(frozen=True)
class Missing:
    """A part that could not be measured."""

    __pydantic_config__ = _STRICT

    what: str
    reason: str
    """One line."""


@dataclass(frozen=True)
class Comparison:
    """Share of pairs in which a judge preferred a run's responses; a tie counts half."""

    __pydantic_config__ = _STRICT

    run: str
    sampling: StoredSampling
    against: str
    """Another run's name, or `reference` for the data set's chosen responses."""
    against_sampling: StoredSampling | None
    """None for the data set's responses."""
    judge: str
    """The judge's model name."""
    criterion: str
    """What it was asked to prefer."""
    win_rate: Interval | None
    """0 to 1 over prompts; None when no answer could be used."""
    wins: int
    losses: int
    ties: int
    """Pairs called equal, those among them that the judge answered inconsistently included."""
    inconsistent: int
    """Pairs for which it preferred the same place in both orders: a tie caused by position."""
    unparsable: int
    """Pairs left out since an answer was not a verdict."""
    transcript: str
    """File of every question and answer, relative to the output directory."""
    refused: int = 0
    """Pairs left out since the judge refuses them."""
    cut: int = 0
    """Pairs left out since an answer was cut at `max_tokens`."""
    failed: int = 0
    """Pairs left out since the server failed; the same command asks them again."""
    undecided: list[Undecided] = field(default_factory=list)
    """Every pair that was left out."""


@dataclass(frozen=True)
class Similarity:
    """Mean cosine between the responses of two runs to the same prompt."""

    __pydantic_config__ = _STRICT

    run: str
    against: str
    """Another run; the run itself for the cosine among its own different responses."""
    sampling: StoredSampling
    """Of both."""
    cosine: Interval | None
    """None where the encoder can read no prompt's responses of both."""


@dataclass(frozen=True)
class MatchedMetric:
    """One diversity metric of two runs, on their matched responses."""

    __pydantic_config__ = _STRICT

    run: Interval | None
    against: Interval | None
    difference: Interval | None
    """run - against, prompt by prompt."""
    raw_difference: Interval | None
    """The same on all responses."""


@dataclass(frozen=True)
class LengthMatched:
    """The diversity of two runs on responses of similar length."""

    __pydantic_config__ = _STRICT

    run: str
    against: str
    sampling: StoredSampling
    """Of both."""
    tolerance: float
    """Greatest difference in words, as a share of the longer response."""
    pairs: int
    """Matched responses of each run, over all prompts."""
    dropped: int
    """Responses of each run that found no partner."""
    prompts: int
    """Prompts with two pairs at least: the metrics are over these."""
    words: Interval | None
    """Mean length of the run's matched responses."""
    against_words: Interval | None
    metrics: dict[str, MatchedMetric]


@dataclass(frozen=True)
class SampleResponses:
    """Some responses of one run at one sampling setting to one prompt."""

    __pydantic_config__ = _STRICT

    run: str
    sampling: StoredSampling
    outputs: list[str]
    finish_reasons: list[str]
    rewards: dict[str, list[float | None]]
    """Reward's name -> one value a response; null where it could not be scored."""


@dataclass(frozen=True)
class Sample:
    """One prompt with what each run answered, to be read side by side."""

    __pydantic_config__ = _STRICT

    id: str
    prompt: StoredPrompt
    responses: list[SampleResponses]


@dataclass(frozen=True)
class Headline:
    """The metrics that the table and the frontier put beside each other."""

    __pydantic_config__ = _STRICT

    diversity: str
    quality: str | None
    """None when neither a reward nor a reference was given; then validity stands in the table."""
    divergence: str | None


@dataclass(frozen=True)
class Results:
    """Everything."""

    __pydantic_config__ = _STRICT

    versions: dict[str, str]
    settings: dict[str, Any]
    """The `evaluation` section of the configuration as resolved."""
    metrics: dict[str, MetricInfo]
    headline: Headline
    runs: list[Run]
    comparisons: list[Comparison] = field(default_factory=list)
    similarities: list[Similarity] = field(default_factory=list)
    """Every two runs at every sampling point that both have; empty for one run."""
    length_matched: list[LengthMatched] = field(default_factory=list)
    """Every run with the first one, where `length_tolerance` asks for it."""
    samples: list[Sample] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    """What failed: the figures are without it."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together (ValueError)."""
        for name in (self.headline.diversity, self.headline.quality, self.headline.divergence):
            if name is not None and name not in self.metrics:
                raise ValueError(f"headline names the metric {name!r}, which is not described")
        names = [run.name for run in self.runs]
        if len(set(names)) != len(names):
            raise ValueError("two runs have the same name")
        for run in self.runs:
            for point in run.points:
                self._check_point(run, point)

    def _check_point(self, run: Run, point: Point) -> None:
        where = f"run {run.name!r} at {point.sampling.label()}"
        for name in (*point.metrics, *point.per_prompt):
            if name not in self.metrics:
                raise ValueError(f"{where}: the metric {name!r} is not described")
        for name, values in point.per_prompt.items():
            if len(values) != len(run.prompt_ids):
                raise ValueError(
                    f"{where}: {name} has {len(values)} values for {len(run.prompt_ids)} prompts"
                )

    def to_json(self) -> str:
        """The file's text. Raises ValueError for a number that is not finite."""
        plain = {"schema": SCHEMA, **_adapter().dump_python(self)}
        return json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = FILE_NAME) -> Results:
        """Read `to_json`'s text.

        Args:
            text: JSON.
            where: the file, for the message.

        Raises:
            UserError: not JSON, another schema, or a field that is missing, unknown or wrong.
        """
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error}); evaluate again") from None
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            found = plain.get("schema") if isinstance(plain, dict) else type(plain).__name__
            raise UserError(
                f"{where}: schema {found!r}, this version reads {SCHEMA}; evaluate again"
            )
        del plain["schema"]
        try:
            return _adapter().validate_json(json.dumps(plain))
        except ValidationError as errors:
            first = errors.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(f"{where}: {place}: {first['msg']}; evaluate again") from None


@cache
def _adapter() -> TypeAdapter[Results]:
    return TypeAdapter(Results)


def write_results(results: Results, output_dir: Path) -> Path:
    """Write `output_dir/evaluation.json`, completely or not at all; returns its path.

    Raises:
        UserError: the directory cannot be written.
    """
    return write_output(output_dir / FILE_NAME, results.to_json())


def read_results(path: Path) -> Results:
    """Read `evaluation.json`, or the one in a directory.

    Raises:
        UserError: it is missing, or not what `Results.from_json` reads.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); run nemo-gdpo evaluate") from None
    return Results.from_json(text, str(file))
