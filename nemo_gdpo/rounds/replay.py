"""The answers to a prompt that are kept for later rounds: by reward and age, none twice, and not
all of one meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import numpy.typing as npt

from nemo_gdpo.config.rounds import ReplayConfig

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Past:
    """An answer of an earlier round."""

    text: str
    score: float
    staleness: int
    """Trainings since it was sampled, up to the round that would learn from it."""


def normalised(text: str) -> str:
    """A text without regard to upper and lower case and to white space."""
    return " ".join(text.casefold().split())


def are_one(one: str, other: str, similarity: float) -> bool:
    """Whether two normalised texts count as one answer."""
    if one == other:
        return True
    if similarity >= 1.0:
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    # The two bounds are cheap, and settle nearly all.
    return (
        matcher.real_quick_ratio() >= similarity
        and matcher.quick_ratio() >= similarity
        and matcher.ratio() >= similarity
    )


def priority(answer: Past, beta: float, recency: float) -> float:
    """Log-reward in nats, less `recency` for each training of its age."""
    return answer.score / beta - recency * answer.staleness


def kept(
    answers: Iterable[Past],
    settings: ReplayConfig,
    beta: float,
    embed: Callable[[Sequence[str]], Sequence[Vector]] | None = None,
) -> list[Past]:
    """The answers that stay, greatest priority first.

    Clusters are greedy: an answer belongs to the first kept one whose cosine reaches the limit, or
    begins a cluster of its own.

    Args:
        answers: to one prompt.
        settings: limits.
        beta: score / beta is a log-reward.
        embed: texts to vectors, for `cluster_share` below 1.
    """
    oldest = settings.max_staleness
    young = [answer for answer in answers if oldest is None or answer.staleness <= oldest]
    ranked = sorted(
        young,
        key=lambda one: (-priority(one, beta, settings.recency), one.staleness, one.text),
    )
    vectors = None if settings.cluster_share >= 1.0 or embed is None else _units(ranked, embed)
    room = max(1, int(settings.cluster_share * settings.size))
    found: list[Past] = []
    written: list[str] = []
    leaders: list[tuple[Vector, list[int]]] = []
    for place, answer in enumerate(ranked):
        text = normalised(answer.text)
        if len(found) >= settings.size:
            break
        if any(are_one(text, other, settings.similarity) for other in written):
            continue
        if vectors is not None:
            members = _members(vectors[place], leaders, settings.cluster_cosine)
            if len(members) >= room:
                continue
            members.append(place)
        found.append(answer)
        written.append(text)
    return found


def _members(vector: Vector, leaders: list[tuple[Vector, list[int]]], cosine: float) -> list[int]:
    """The members of the answer's cluster, which is made where there is none."""
    for leader, members in leaders:
        if float(leader @ vector) >= cosine:
            return members
    leaders.append((vector, []))
    return leaders[-1][1]


def _units(
    answers: Sequence[Past], embed: Callable[[Sequence[str]], Sequence[Vector]]
) -> list[Vector]:
    found = embed([answer.text for answer in answers])
    return [vector / np.linalg.norm(vector) for vector in found]
