"""What is compared, with which settings, and what comes first when time is short."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from examples.film_reviews.evidence.records import BASE

Data = Literal["pairs", "divpo", "redipo", "unpaired"]
BETAS = (0.03, 0.1, 0.3)
KAPPAS = (2.0, 5.0, 10.0)
"""In nats: by how much less log-reward a rejected response gets, where the log-ratio stays."""
GAMMAS = (0.05, 0.15, 0.3, 0.6)
"""ADPO's thresholds, in units of beta times log-ratio: four label budgets."""
MIDDLE = 5.0
"""The kappa of arms that are run at one. IPO's target is 1 / (2 beta): the same at beta 0.1."""


@dataclass(frozen=True)
class Arm:
    """One way to train, or none."""

    name: str
    family: str
    objective: dict[str, Any] = field(default_factory=dict, hash=False)
    """`objective` and its settings; empty for the untouched model."""
    data: Data = "pairs"
    seeds: int = 5
    labels_of: str | None = None
    """Trains on as many random pairs as this arm asked labels for."""
    scaled: bool = False
    """Sampled at higher temperatures as well, after the last update."""

    def overrides(self) -> list[str]:
        """Overrides for `nemo-gdpo train`."""
        rest = dict(self.objective)
        name = rest.pop("name")
        return [f"objective={name}", *(f"objective.{key}={v}" for key, v in rest.items())]


def _dpo(beta: float) -> Arm:
    objective = {"name": "dpo", "beta": beta}
    return Arm(f"dpo-b{beta:g}", "dpo", objective, scaled=beta == 0.1)


def _gdpo(balance: str, kappa: float, **rest: Any) -> Arm:
    objective = {"name": "gdpo", "balance": balance, "rejected_log_reward": -kappa, "alpha": 1.0}
    return Arm(f"gdpo-{balance}-k{kappa:g}", f"gdpo-{balance}", objective, **rest)


def _adpo(gamma: float) -> list[Arm]:
    name = f"adpo-g{gamma:g}"
    return [
        Arm(name, "adpo", {"name": "adpo", "beta": 0.1, "gamma": gamma}),
        Arm(f"random-g{gamma:g}", "random", {"name": "dpo", "beta": 0.1}, labels_of=name),
    ]


_TOKENWISE = {
    "name": "gdpo",
    "balance": "db",
    "reward": "tokenwise",
    "rejected_log_reward": -MIDDLE,
    "alpha": 1.0,
}
_RELEASED = {
    "name": "gdpo",
    "balance": "db",
    "reward": "tokenwise",
    "alpha": 0.1,
    "rejected_log_reward": -8.0,
    "eos_temperature": 0.1,
}
_SUBTB = {"name": "gdpo", "balance": "subtb", "rejected_log_reward": -MIDDLE, "alpha": 1.0}
_ODPO = {"name": "odpo", "beta": 0.1, "alpha": 1.0}
_DPO = {"name": "dpo", "beta": 0.1}

ARMS = (
    Arm(BASE, BASE),
    *[_dpo(beta) for beta in BETAS],
    *[_gdpo("tb", kappa) for kappa in KAPPAS],
    Arm("odpo-log", "odpo-log", {**_ODPO, "offset": "log"}),
    Arm("odpo-identity", "odpo-identity", {**_ODPO, "offset": "identity"}),
    *[arm for gamma in GAMMAS for arm in _adpo(gamma)],
    _gdpo("subtb", MIDDLE),
    _gdpo("db", MIDDLE),
    Arm("gdpo-tokenwise", "gdpo-tokenwise", _TOKENWISE),
    Arm("gdpo-released", "gdpo-released", _RELEASED, seeds=3),
    Arm("spl", "spl", {"name": "spl", "alpha": 0.1, "beta": 0.05}),
    Arm("dpo-divpo", "dpo-divpo", _DPO, data="divpo"),
    Arm("dpo-redipo", "dpo-redipo", _DPO, data="redipo"),
    Arm("gdpo-unpaired", "gdpo-unpaired", _SUBTB, data="unpaired", seeds=3),
    Arm("odpo-log1p", "odpo-log1p", {**_ODPO, "offset": "log1p"}, seeds=3),
    Arm("ipo", "ipo", {"name": "ipo", "beta": 1.0 / (2.0 * MIDDLE)}, seeds=2),
)
"""All arms, by importance. An arm stands before the one that takes its number of labels."""
BY_NAME = {arm.name: arm for arm in ARMS}
NO_ARMS = {
    "gdpo-no-eos": "without the probability of ending nothing gives the flow of a state that is "
    "not the end, and of subtb's sub-trajectories the whole response is left: that is tb, which "
    "is compared with subtb",
}
"""Names that the protocol asks for -> why there is no such arm."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}--seed-{self.seed}"


PILOT = 100
"""Seeds of a pilot come after this one: the main runs have none of them."""


def jobs(arms: tuple[Arm, ...], seeds: int, *, pilot: bool = False) -> list[Job]:
    """The most important arms with all their seeds before the others."""
    first = PILOT if pilot else 0
    main = [arm for arm in arms if arm.family in (BASE, "dpo", "gdpo-tb")]
    rest = [arm for arm in arms if arm not in main]
    found = []
    for some in (main, rest):
        for seed in range(1, seeds + 1):
            found += [Job(arm, first + seed) for arm in some if seed <= arm.seeds]
    return found


def needed(job: Job) -> list[Job]:
    """The jobs whose outcome this one needs."""
    found = [] if job.arm.name == BASE else [Job(BY_NAME[BASE], job.seed)]
    if job.arm.labels_of is not None:
        found.append(Job(BY_NAME[job.arm.labels_of], job.seed))
    return found
