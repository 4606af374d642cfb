"""Preference objectives: pure mathematics on token log-probabilities, one file a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

OBJECTIVES: dict[str, type] = {"dpo": DPO, "ipo": IPO, "odpo": ODPO, "adpo": ADPO, "gdpo": GDPO}
"""Value of the `objective` key -> its class."""


def build_objective(name: str, fields: Mapping[str, Any]) -> Objective:
    """The objective of a configuration.

    Raises:
        KeyError: there is no such objective.
        TypeError: a field that it does not have.
        ValueError: a field out of range.
    """
    objective: Objective = OBJECTIVES[name](**fields)
    return objective


__all__ = [
    "ADPO",
    "DPO",
    "GDPO",
    "IPO",
    "OBJECTIVES",
    "ODPO",
    "Objective",
    "ObjectiveOutput",
    "PairLogps",
    "PairTargets",
    "TokenLogps",
    "build_objective",
]
