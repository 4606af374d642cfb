"""The `objective` section: the settings of each objective, declared once.

`nemo_gdpo.objectives.DPO` and its siblings are these dataclasses with the paper's mathematics on
top. They live here because a configuration is checked without torch.

To add an objective, write its settings here, name them in `ObjectiveConfig`, and give
`nemo_gdpo.objectives` the class that computes its loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from nemo_gdpo.config.base import FIXED, SETTINGS, OnResume
from nemo_gdpo.config.problem import ConflictError, Problem

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Flag = Annotated[bool, Field(strict=True)]


class ObjectiveSettings:
    """Fields that all settings share, at the values that most objectives take."""

    name: str
    """Value of `objective.name`."""
    needs_scores: ClassVar[bool] = False
    """Every pair has to have a score of each response."""
    on_resume: ClassVar[OnResume | None] = FIXED
    """The loss gives a checkpoint's numbers their meaning."""

    def conflicts(self) -> Iterator[Problem]:
        """Settings that cannot be honoured together, or that nothing would read."""
        yield from ()

    @property
    def takes_unpaired(self) -> bool:
        """Whether it learns from responses one by one, and not by comparing two."""
        return False

    def margin_refusal(self) -> str | None:
        """Why a margin that the data gives of a pair has no meaning here; None where it has."""
        return None

    def __post_init__(self) -> None:
        """Refuse what `conflicts` names, in Python as on the command line.

        Raises:
            ConflictError: the first one.
        """
        for problem in self.conflicts():
            raise ConflictError(problem)


@dataclass(frozen=True, config=SETTINGS)
class DPOSettings(ObjectiveSettings):
    """Direct preference optimisation (Rafailov et al. 2023); cDPO with label smoothing."""

    name: Literal["dpo"] = field(default="dpo", kw_only=True, repr=False)
    beta: Positive = 0.1
    """Weight of the log-ratio in nats; larger keeps the policy closer to the reference. The authors
    advise 0.1 to 0.5."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, strict=True)] = 0.0
    """Probability that a preference is noted the wrong way round (conservative DPO)."""
    average_log_probs: Flag = False
    """Divide each log-probability by the response's length first (length-normalised DPO), so that
    length alone makes no margin. beta then weighs nats a token: Tulu 3 takes 5."""

    def margin_refusal(self) -> str | None:
        """Label smoothing, which also learns from the turned pair: whose margin is not given."""
        return (
            "label_smoothing also learns from the turned pair, of which no margin is known"
            if self.label_smoothing
            else None
        )


@dataclass(frozen=True, config=SETTINGS)
class IPOSettings(ObjectiveSettings):
    """Identity preference optimisation (Azar et al. 2023)."""

    name: Literal["ipo"] = field(default="ipo", kw_only=True, repr=False)
    beta: Positive = 0.1
    """The paper's tau: the log-ratio is driven to 1 / (2 beta), so larger means a smaller gap, 5
    nats at 0.1."""
    average_log_probs: Flag = False
    """Divide each log-probability by the response's length first. The two forms differ much."""


@dataclass(frozen=True, config=SETTINGS)
class ODPOSettings(ObjectiveSettings):
    """DPO with an offset (Amini et al. 2024): graded preferences. Needs scores in the data."""

    name: Literal["odpo"] = field(default="odpo", kw_only=True, repr=False)
    needs_scores: ClassVar[bool] = True
    beta: Positive = 0.1
    """Weight of the log-ratio, as in DPO."""
    alpha: NotNegative = 1.0
    """Weight of the offset, in the units of the scores; 0 is DPO."""
    offset: Literal["log", "identity", "log1p", "ratio"] = "log"
    """Function of the scores: log(s_c - s_r), the paper's, negative below a gap of 1; s_c - s_r;
    log1p(s_c - s_r), never negative; or log(s_c / s_r), for positive scores (c chosen, r
    rejected)."""


@dataclass(frozen=True, config=SETTINGS)
class ADPOSettings(ObjectiveSettings):
    """Active-query DPO (Ji et al. 2024): asks for a label only where the policy is unsure."""

    name: Literal["adpo"] = field(default="adpo", kw_only=True, repr=False)
    beta: Positive = 0.1
    """Weight of the log-ratio, as in DPO; it also scales the confidence, so changing it changes how
    many labels are asked for."""
    gamma: Annotated[float, Field(ge=0, strict=True)] = 1.3
    """A label is asked for when |beta * h| <= gamma: 13 nats of log-ratio at beta 0.1. At the first
    step everything is asked; infinity (inf) asks always, which is DPO."""
    pseudo_labels: Flag = True
    """Learn from the policy's own verdict where no label is asked for; false leaves them out."""

    def margin_refusal(self) -> str | None:
        """Always: the policy's own verdict may turn the pair."""
        return "the policy's own verdict may turn the pair, of which no margin is known"


@dataclass(frozen=True, config=SETTINGS)
class GDPOSettings(ObjectiveSettings):
    """GFlowNet-DPO (Kwon et al., EMNLP 2024): sample in proportion to a reward."""

    name: Literal["gdpo"] = field(default="gdpo", kw_only=True, repr=False)
    alpha: NotNegative = 1.0
    """Weight of the preference in the log-reward. kappa = -alpha * rejected_log_reward, in nats, is
    all that counts: under tb every pair's log-ratio moves to kappa and stays there."""
    rejected_log_reward: Annotated[float, Field(le=0, allow_inf_nan=False, strict=True)] = -8.0
    """Log-reward of a rejected response before alpha; the chosen one's is 0."""
    eos_temperature: Positive = 1.0
    """Temperature of the reference's end-token probability in the reward; small values blow up
    differences (0.1, the release's, makes 12 nats 120)."""
    balance: Literal["db", "subtb", "tb"] = "tb"
    """Balance condition that is penalised: every single transition (db), every stretch of a
    response (subtb), or the pair as a whole, in which the unknown normaliser cancels (tb)."""
    subtb_lambda: Positive = 1.0
    """Weight of a longer stretch for each further step; read with balance=subtb only."""
    reward: Literal["cumulative", "tokenwise"] = "cumulative"
    """Reward of a prefix: its whole log-probability, or the last token's as in the release."""

    @property
    def takes_unpaired(self) -> bool:
        """But for tb, the pair decides the log-reward alone: each response has its own balance."""
        return self.balance != "tb"

    def conflicts(self) -> Iterator[Problem]:
        """The pair's balance without a pair's reward; a decay that nothing reads."""
        if self.balance == "tb" and self.reward == "tokenwise":
            yield Problem(
                "objective.reward",
                "balance=tb compares whole responses, which a token-wise reward does not define",
                "set objective.reward=cumulative, or objective.balance=db",
            )
        if self.balance != "subtb" and self.subtb_lambda != 1.0:
            yield Problem(
                "objective.subtb_lambda",
                f"nothing reads it with balance={self.balance}",
                "set objective.balance=subtb, or leave it at 1.0",
            )


@dataclass(frozen=True, config=SETTINGS)
class SPLSettings(ObjectiveSettings):
    """Soft preference learning (Slocum et al., ICLR 2025): entropy and reference weighed apart."""

    name: Literal["spl"] = field(default="spl", kw_only=True, repr=False)
    alpha: Positive = 0.1
    """Weight of the policy's log-ratio: how strongly entropy is kept."""
    beta: NotNegative = 0.1
    """Weight of the reference's log-ratio; below alpha it flattens the reference, so that answers
    grow more diverse, at alpha it is DPO, and at 0 the reference is not read."""


@dataclass(frozen=True, config=SETTINGS)
class GFlowNetSettings(ObjectiveSettings):
    """GFlowNet on sampled answers (Hu et al. 2023): sample in proportion to a reward that is given
    for each answer. Needs scores in the data."""

    name: Literal["gflownet"] = field(default="gflownet", kw_only=True, repr=False)
    needs_scores: ClassVar[bool] = True
    beta: Positive = 1.0
    """An answer's log-reward is log p_ref(y|x) / reward_temperature + score / beta; nats if the
    scores are."""
    reward_temperature: Positive = 1.0
    """Divides the reference's log-probability in the reward: below 1 the target is sharper than the
    reference (Hu et al. anneal 1.0 to 0.8), above 1 flatter."""
    balance: Literal["tb", "subtb", "db"] = "tb"
    """Balance condition that is penalised: whole answers, against the others of their group, whose
    mean estimates log Z (tb); every stretch of an answer (subtb); every single transition (db)."""
    subtb_lambda: Positive = 1.0
    """Weight of a longer stretch for each further step; read with balance=subtb only."""

    def margin_refusal(self) -> str | None:
        """Always: no answer is preferred to another."""
        return "answers have scores, and none is preferred"

    def conflicts(self) -> Iterator[Problem]:
        """A decay that nothing reads."""
        if self.balance != "subtb" and self.subtb_lambda != 1.0:
            yield Problem(
                "objective.subtb_lambda",
                f"nothing reads it with balance={self.balance}",
                "set objective.balance=subtb, or leave it at 1.0",
            )


ObjectiveConfig = Annotated[
    GDPOSettings
    | ODPOSettings
    | ADPOSettings
    | DPOSettings
    | IPOSettings
    | SPLSettings
    | GFlowNetSettings,
    Field(discriminator="name"),
]
OBJECTIVE_SECTIONS: dict[str, type[ObjectiveSettings]] = {
    section.name: section for section in get_args(get_args(ObjectiveConfig)[0])
}
"""Value of `objective.name` -> its settings."""


def plain_settings(settings: ObjectiveConfig) -> dict[str, Any]:
    """`name` and every field, as a composed file holds them."""
    return asdict(settings)
