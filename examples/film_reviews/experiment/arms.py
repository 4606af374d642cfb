"""What is compared, with which settings, and what comes first when time is short."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

BASE = "base"
DPO_ARM = "dpo"
ADPO_ARM = "adpo"
RANDOM_ARM = "dpo-random"
RELEASED_ARM = "gdpo-released"
Cache = Literal["label", "label+eos", "label+eos+tempered"]
STRENGTHS = (8, 20)
"""kappa in nats: how much less log-reward a rejected response gets. 8 is the demo's."""


@dataclass(frozen=True)
class Arm:
    """One way to train, or none."""

    name: str
    objective: dict[str, Any] = field(default_factory=dict, hash=False)
    """`objective` and its settings; empty for the untouched model."""
    cache: Cache = "label"
    """Columns of the reference that it needs: arms with the same share them."""
    main: bool = False
    """Trained with every seed; the others with the first alone."""
    labels_of: str | None = None
    """Trains on as many random pairs as this arm asked labels for."""

    def overrides(self) -> list[str]:
        """Overrides for `nemo-gdpo train`."""
        rest = dict(self.objective)
        name = rest.pop("name")
        return [f"objective={name}", *(f"objective.{key}={_text(v)}" for key, v in rest.items())]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gdpo(balance: str, kappa: float, *, main: bool = False) -> Arm:
    return Arm(
        f"gdpo-{balance}-k{kappa:g}",
        {"name": "gdpo", "balance": balance, "alpha": 1.0, "rejected_log_reward": -float(kappa)},
        cache="label+eos",
        main=main,
    )


ARMS = (
    Arm(BASE, main=True),
    Arm(DPO_ARM, {"name": "dpo", "beta": 0.1}, main=True),
    _gdpo("tb", STRENGTHS[0], main=True),
    # A threshold of 1.3, the paper's, is 13 nats: in so few updates nothing gets that sure, and
    # every label would be asked for. 0.3 is 3 nats.
    Arm(ADPO_ARM, {"name": "adpo", "beta": 0.1, "gamma": 0.3}, main=True),
    Arm(RANDOM_ARM, {"name": "dpo", "beta": 0.1}, main=True, labels_of=ADPO_ARM),
    Arm("ipo", {"name": "ipo", "beta": 0.1}, main=True),
    Arm("odpo", {"name": "odpo", "beta": 0.1, "alpha": 1.0, "offset": "log"}, main=True),
    _gdpo("tb", STRENGTHS[1], main=True),
    _gdpo("subtb", STRENGTHS[0]),
    _gdpo("subtb", STRENGTHS[1], main=True),
    _gdpo("db", STRENGTHS[0]),
    _gdpo("db", STRENGTHS[1]),
    Arm(
        RELEASED_ARM,
        {
            "name": "gdpo",
            "balance": "db",
            "reward": "tokenwise",
            "alpha": 0.1,
            "rejected_log_reward": -8.0,
            "eos_temperature": 0.1,
        },
        cache="label+eos+tempered",
    ),
)
"""All arms, by importance. ADPO stands before the arm that takes its number of labels."""
BY_NAME = {arm.name: arm for arm in ARMS}


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}/seed-{self.seed}"


def jobs(arms: tuple[Arm, ...], seeds: int) -> list[Job]:
    """Every arm with the first seed, then the main arms with the others, most important first."""
    found = [Job(arm, 1) for arm in arms]
    for seed in range(2, seeds + 1):
        found += [Job(arm, seed) for arm in arms if arm.main]
    return found


def needed(job: Job) -> Job | None:
    """The job whose outcome this one needs."""
    if job.arm.labels_of is None:
        return None
    return Job(BY_NAME[job.arm.labels_of], job.seed)
