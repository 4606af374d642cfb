"""Parts of training besides the loop: how it ends, its splits, its progress, and how long it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import torch

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.models.preference_model import LOSS, NOT_FINITE
from nemo_gdpo.objectives import Objective, PairLogps, PairTargets, TokenLogps
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.queries import QueryCount
from nemo_gdpo.training.reference_store import ReferenceStore


class Outcome(Enum):
    """The way `fit` ended."""

    DONE = "done"
    STOPPED = "stopped"
    """Stopped by a signal, after a checkpoint: to be requeued."""


@dataclass(frozen=True)
class Split:
    """Pairs with what belongs to them. `store` is None where the reference is computed at
    every step."""

    data: PreferenceDataset
    builder: BatchBuilder
    store: ReferenceStore | None


@dataclass
class Progress:
    """Progress of the run; everything in it is the same on every rank."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    """Updates among the steps that were left out: something was not finite."""
    queries: QueryCount = field(default_factory=lambda: QueryCount(0))


def metric_names(objective: Objective) -> list[str]:
    """The per-pair values that a step yields, found by calling the objective on one toy pair."""
    logps = torch.full((1, 2), -1.0)
    toy = TokenLogps(logps, torch.ones(1, 2, dtype=torch.bool), logps, logps)
    pair = PairLogps(chosen=toy, rejected=toy)
    scores = PairTargets(torch.tensor([2.0]), torch.tensor([1.0]))
    return [LOSS, *objective(pair, pair, scores).metrics, NOT_FINITE]


def total_steps(config: RunConfig, num_pairs: int) -> int:
    """Updates of the run, made or left out, from max_steps and max_epochs, whichever ends first."""
    limits = []
    if config.trainer.max_steps is not None:
        limits.append(config.trainer.max_steps)
    if config.trainer.max_epochs is not None:
        updates = config.trainer.max_epochs * num_pairs / config.model.global_batch_size
        limits.append(math.ceil(updates))
    return min(limits)
