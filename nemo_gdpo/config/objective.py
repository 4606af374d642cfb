"""The `objective` section: one model an objective, with the fields of its dataclass.

The dataclasses themselves live in `nemo_gdpo.objectives`, which imports torch; this package does
not, so that a configuration can be checked anywhere. A test keeps the two equal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nemo_gdpo.config.base import Section

Positive = Field(gt=0, allow_inf_nan=False)
NotNegative = Field(ge=0, allow_inf_nan=False)


class DPOConfig(Section):
    """Direct preference optimisation (Rafailov et al. 2023); cDPO with label smoothing."""

    name: Literal["dpo"] = "dpo"
    beta: Annotated[float, Positive] = 0.1
    """Weight of the log-ratio in nats; larger keeps the policy closer to the reference."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a preference is noted the wrong way round."""


class IPOConfig(Section):
    """Identity preference optimisation (Azar et al. 2023)."""

    name: Literal["ipo"] = "ipo"
    beta: Annotated[float, Positive] = 0.1
    """The paper's tau: the log-ratio is driven to 1 / (2 beta), so larger means a smaller gap."""
    average_log_probs: bool = False
    """Divide each log-probability by the response's length first."""


class ODPOConfig(Section):
    """DPO with an offset (Amini et al. 2024): graded preferences. Needs scores in the data."""

    name: Literal["odpo"] = "odpo"
    beta: Annotated[float, Positive] = 0.1
    """As in DPO."""
    alpha: Annotated[float, NotNegative] = 1.0
    """Weight of the offset; 0 is DPO."""
    offset: Literal["log", "identity", "log1p", "ratio"] = "log"
    """Function of the scores: log(s_w - s_l), s_w - s_l, log1p(s_w - s_l), or log(s_w / s_l)."""


class ADPOConfig(Section):
    """Active-query DPO (Ji et al. 2024): asks for a label only where the policy is unsure."""

    name: Literal["adpo"] = "adpo"
    beta: Annotated[float, Positive] = 0.1
    """As in DPO; it also scales the confidence, so changing it changes the query rate."""
    gamma: Annotated[float, Field(ge=0)] = 1.3
    """A label is asked for when |beta * h| <= gamma; .inf asks always, which is DPO."""
    pseudo_labels: bool = True
    """Learn from the policy's own verdict where no label is asked for; false leaves them out."""


class GDPOConfig(Section):
    """GFlowNet-DPO (Kwon et al., EMNLP 2024): sample in proportion to a reward."""

    name: Literal["gdpo"] = "gdpo"
    alpha: Annotated[float, NotNegative] = 0.1
    """Weight of the preference in the log-reward."""
    rejected_log_reward: Annotated[float, Field(le=0, allow_inf_nan=False)] = -8.0
    """Log-reward of a rejected response before alpha; the chosen one's is 0."""
    eos_temperature: Annotated[float, Positive] = 1.0
    """Temperature of the reference's end-token probability in the reward."""
    balance: Literal["db", "subtb", "tb"] = "db"
    """Which balance condition is penalised: one step, all sub-trajectories, or the pair."""
    subtb_lambda: Annotated[float, Positive] = 1.0
    """Decay of longer sub-trajectories; read with balance=subtb only."""
    reward: Literal["cumulative", "tokenwise"] = "cumulative"
    """Reward of a prefix: its whole log-probability, or the last token's as in the release."""


ObjectiveConfig = Annotated[
    DPOConfig | IPOConfig | ODPOConfig | ADPOConfig | GDPOConfig, Field(discriminator="name")
]
OBJECTIVE_SECTIONS: dict[str, type[Section]] = {
    "gdpo": GDPOConfig,
    "odpo": ODPOConfig,
    "adpo": ADPOConfig,
    "dpo": DPOConfig,
    "ipo": IPOConfig,
}


def kwargs_of(section: Section) -> tuple[str, dict[str, Any]]:
    """(name, fields of the dataclass of that name)."""
    fields = section.model_dump()
    return fields.pop("name"), fields
