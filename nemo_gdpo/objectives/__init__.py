"""Preference objectives: pure mathematics on token log-probabilities, one file a paper."""

from __future__ import annotations

from nemo_gdpo.objectives.adpo import ADPO
from nemo_gdpo.objectives.dpo import DPO, IPO
from nemo_gdpo.objectives.gdpo import GDPO
from nemo_gdpo.objectives.odpo import ODPO
from nemo_gdpo.objectives.types import (
    Objective,
    ObjectiveOutput,
    PairLogps,
    PairTargets,
    TokenLogps,
)

__all__ = [
    "ADPO",
    "DPO",
    "GDPO",
    "IPO",
    "ODPO",
    "Objective",
    "ObjectiveOutput",
    "PairLogps",
    "PairTargets",
    "TokenLogps",
]
