"""The protocol as data: what is asked, which difference would matter, what is left out.

`protocol.yaml` is committed before the runs that answer it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from nemo_gdpo.errors import UserError

PATH = Path(__file__).with_name("protocol.yaml")
Kind = Literal["matched", "scaled", "last", "no_worse"]
T = TypeVar("T")
KINDS = ("matched", "scaled", "last", "no_worse")


@dataclass(frozen=True)
class Claim:
    """One sentence that the records hold, refute or leave undecided."""

    id: str
    text: str
    kind: Kind
    """matched: y at equal x along the runs; scaled: the second side is swept over temperatures
    instead; last: y after the last update; no_worse: the same, and losing less than the margin is
    enough."""
    first: str
    second: str
    y: str
    margin: float
    """The smallest difference that would matter to a user."""
    x: str = "reward"
    main: bool = False
    """Whether it was the reason for the experiment."""
    needs_control: bool = False
    """Whether it says nothing unless training costs DPO diversity."""


@dataclass(frozen=True)
class Control:
    """What has to happen for a comparison of diversity to mean anything."""

    arm: str
    metrics: tuple[str, ...]
    fall: float


@dataclass(frozen=True)
class Exclusions:
    """Points that take no part, by their means."""

    valid: float
    """Less than this share of responses is text."""
    perplexity: float
    """More than so many times the untouched model's."""


@dataclass(frozen=True)
class Protocol:
    """All of it."""

    shares: tuple[float, ...]
    """Levels at which curves are compared, as shares of the gain that both sides reach."""
    least_gain: dict[str, float]
    """x -> gain below which there is nothing to compare."""
    resamples: int
    least_seeds: int
    """Of a main claim."""
    control: Control
    exclusions: Exclusions
    claims: tuple[Claim, ...]
    fingerprint: str

    def claim(self, name: str) -> Claim:
        """By its id."""
        (found,) = (claim for claim in self.claims if claim.id == name)
        return found


def read_protocol(path: Path = PATH) -> Protocol:
    """Read it, and refuse what it should not have.

    Raises:
        UserError: it is missing, has a field too many or too few, or an unknown kind.
    """
    try:
        text = path.read_bytes()
        plain: dict[str, Any] = yaml.safe_load(text)
        claims = tuple(_make(Claim, claim) for claim in plain.pop("claims"))
        control = dict(plain.pop("control"))
        control["metrics"] = tuple(control["metrics"])
        protocol = _make(
            Protocol,
            {
                **plain,
                "shares": tuple(plain["shares"]),
                "claims": claims,
                "control": _make(Control, control),
                "exclusions": _make(Exclusions, plain["exclusions"]),
                "fingerprint": hashlib.sha256(text).hexdigest(),
            },
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a protocol ({error}); see protocol.py for its form") from None
    for claim in claims:
        if claim.kind not in KINDS:
            raise UserError(f"{path}: {claim.id}: kind {claim.kind}: one of {', '.join(KINDS)}")
    if len({claim.id for claim in claims}) != len(claims):
        raise UserError(f"{path}: two claims have the same id; rename one")
    return protocol


def _make(kind: type[T], values: dict[str, Any]) -> T:
    unknown = set(values) - {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(**values)
