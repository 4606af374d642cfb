"""Preference objectives: pure mathematics on token log-probabilities, one file a paper."""

from __future__ import annotations

from nemo_gdpo.config.objective import ObjectiveConfig, plain_settings
from nemo_gdpo.objectives.adpo import ADPO
from nemo_gdpo.objectives.dpo import DPO, IPO
from nemo_gdpo.objectives.gdpo import GDPO
from nemo_gdpo.objectives.gflownet import GFlowNet
from nemo_gdpo.objectives.odpo import ODPO
from nemo_gdpo.objectives.spl import SPL
from nemo_gdpo.objectives.types import (
    GroupLogps,
    Objective,
    ObjectiveOutput,
    PairLogps,
    PairTargets,
    Step0Inputs,
    TokenLogps,
)

AnyObjective = GDPO | ODPO | ADPO | DPO | IPO | SPL | GFlowNet
OBJECTIVES: dict[str, type[AnyObjective]] = {
    objective.name: objective for objective in (GDPO, ODPO, ADPO, DPO, IPO, SPL, GFlowNet)
}
"""The table of objectives: value of `objective.name` -> its class."""


def build_objective(settings: ObjectiveConfig) -> AnyObjective:
    """The objective of a configuration: its settings with the paper's mathematics."""
    return OBJECTIVES[settings.name](**plain_settings(settings))


__all__ = [
    "ADPO",
    "DPO",
    "GDPO",
    "IPO",
    "OBJECTIVES",
    "ODPO",
    "SPL",
    "AnyObjective",
    "GFlowNet",
    "GroupLogps",
    "Objective",
    "ObjectiveOutput",
    "PairLogps",
    "PairTargets",
    "Step0Inputs",
    "TokenLogps",
    "build_objective",
]
