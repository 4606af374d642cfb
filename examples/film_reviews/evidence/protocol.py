"""The protocol as data: what is asked, which difference would matter, what takes no part.

`protocol.yaml` is committed before the runs that answer it. What these classes lack is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_gdpo.errors import UserError

PATH = Path(__file__).with_name("protocol.yaml")
KINDS = ("matched", "last", "no_worse")
GROUPS = {
    "diversity": "Diversity at the same reward",
    "divergence": "Reward at the same divergence",
    "temperature": "Temperature instead of training",
    "ablation": "What each part adds",
    "pairs": "Which pairs",
    "labels": "Fewer labels",
}
"""Of claims, in the page's order, with their titles."""
OUTCOMES = ("held", "refuted", "undecided")


@dataclass
class Claim:
    """One sentence that the records hold, refute or leave undecided."""

    id: str
    text: str
    group: str
    """One of GROUPS, by which the page puts claims together."""
    kind: str
    """matched: y at equal x; last: y after the last update; no_worse: the same, where losing less
    than the margin is enough."""
    first: str
    second: str
    """Arms; of `matched` claims families as well."""
    y: str
    margin: float
    """The smallest difference that would matter to a user."""
    x: str = "reward"
    first_sweep: bool = False
    second_sweep: bool = False
    """Whether the side's curve runs over temperatures instead of along its training."""
    shares: list[float] = field(default_factory=list)
    """Where to ask, when not at the protocol's shares."""
    main: bool = False
    """Whether it was a reason for the experiment."""
    means: dict[str, str] = field(default_factory=dict)
    """Outcome -> what follows from it for choosing an objective."""


@dataclass
class Control:
    """What has to happen for a comparison of diversity to mean anything."""

    arm: str
    metrics: list[str]
    """One of them is enough."""
    fall: float
    guards: list[str]
    """Metrics of which nothing is claimed when it fails."""


@dataclass
class Exclusions:
    """Points that take no part, by their means."""

    valid: float
    """When a smaller share of the responses is text."""
    perplexity: float
    """When it is more than so many times the untouched model's."""


@dataclass
class Protocol:
    """All of it."""

    resamples: int
    least_seeds: int
    """Of a main claim; fewer are named beside its outcome."""
    power: str
    """Where the number of seeds comes from, in words."""
    shares: list[float]
    """Where curves are compared: shares of the gain in x that both sides reach."""
    least_gain: dict[str, float]
    """x -> gain below which there is nothing to compare."""
    control: Control
    exclusions: Exclusions
    claims: list[Claim]
    sha256: str = ""
    """Of the file; it is not written in it."""


def read_protocol(path: Path = PATH) -> Protocol:
    """Read it, and refuse what it should not have.

    Raises:
        UserError: it cannot be read, has a field too many or too few or of another type, a key that
            is there twice, or a value that means nothing.
    """
    try:
        text = path.read_bytes()
        made = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(Protocol), OmegaConf.create(text.decode()))
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name the protocol's file") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: not a protocol ({why}); protocol.py has its form") from None
    assert isinstance(made, Protocol)
    if made.sha256:
        raise UserError(f"{path}: sha256 is computed; take it out")
    for problem in _problems(made):
        raise UserError(f"{path}: {problem}")
    made.sha256 = hashlib.sha256(text).hexdigest()
    return made


def _problems(protocol: Protocol) -> list[str]:
    found = []
    if protocol.resamples < 100 or protocol.least_seeds < 1:
        found.append("resamples and least_seeds: at least 100 and 1")
    if not protocol.shares:
        found.append("shares: name at least one")
    ids = [claim.id for claim in protocol.claims]
    found += [f"claim {name} is there twice; rename one" for name in ids if ids.count(name) > 1]
    for claim in protocol.claims:
        found += [f"claim {claim.id}: {problem}" for problem in _of_claim(protocol, claim)]
    return found


def _of_claim(protocol: Protocol, claim: Claim) -> list[str]:
    found = []
    for name, value, known in (("kind", claim.kind, KINDS), ("group", claim.group, GROUPS)):
        if value not in known:
            found.append(f"{name} {value}: one of {', '.join(known)}")
    if claim.margin <= 0:
        found.append("margin: must be above 0")
    shares = [*protocol.shares, *claim.shares]
    if any(not 0 < share <= 1 for share in shares):
        found.append("shares: between 0 and 1")
    if claim.kind == "matched" and claim.x not in protocol.least_gain:
        found.append(f"x {claim.x}: least_gain has none for it")
    if claim.kind != "matched" and (claim.first_sweep or claim.second_sweep or claim.shares):
        found.append("sweeps and shares are read with kind matched only; take them out")
    for outcome in claim.means:
        if outcome not in OUTCOMES:
            found.append(f"means {outcome}: one of {', '.join(OUTCOMES)}")
    if claim.main and set(claim.means) != set(OUTCOMES):
        found.append(f"means: a main claim says what follows from {', '.join(OUTCOMES)}")
    return found
