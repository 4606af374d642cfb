"""Pairs that occur twice: in one split, with the opposite preference, or in both splits."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemo_gdpo.data.places import PlaceTable
from nemo_gdpo.data.types import TokenizedPair


def pair_keys(
    prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]
) -> tuple[int, int]:
    """Hash of a pair's tokens, and of those of the pair with the opposite preference.

    Python's hash of numbers is the same in every process of the same Python.
    """
    return hash((prompt, chosen, rejected)), hash((prompt, rejected, chosen))


def pair_keys_of(pair: TokenizedPair) -> list[tuple[int, int]]:
    """`pair_keys` of a pair; of unpaired rows the hash of each, and of it with the other label."""
    if pair.labels is None:
        return [pair_keys(pair.prompt_ids, pair.chosen.ids, pair.rejected.ids)]
    rows = zip(pair.sequences, pair.labels, strict=True)
    keys = [
        (hash((prompt, said.ids, label)), hash((prompt, said.ids, not label)))
        for (prompt, said), label in rows
    ]
    # The last of an odd number stands on both sides.
    return keys[:1] if pair.weight == HALF else keys


HALF = 0.5
"""Weight of an unpaired row that stands on both sides of its place."""


@dataclass
class Repeats:
    """Pairs of one split by their tokens, and what was found among them."""

    places: PlaceTable = field(default_factory=PlaceTable)
    """Hash of a pair's tokens -> where it stands first."""
    repeated: int = 0
    """Pairs that stood there before."""
    contradictory: int = 0
    """Pairs of which the other response was preferred before."""
    example: str = ""
    """The first contradiction: both places."""

    def add(
        self,
        prompt: tuple[int, ...],
        chosen: tuple[int, ...],
        rejected: tuple[int, ...],
        where: str,
    ) -> None:
        """Count a pair."""
        self.add_keys(*pair_keys(prompt, chosen, rejected), where)

    def add_keys(self, key: int, opposite: int, where: str) -> None:
        """Count a pair by its `pair_keys`."""
        if self.places.add(key, where) is not None:
            self.repeated += 1
        before = self.places.find(opposite)
        if before is not None:
            self.contradictory += 1
            self.example = self.example or f"{before} and {where}"

    def in_words(self, split: str) -> list[str]:
        """Lines about this split."""
        found = []
        if self.contradictory:
            found.append(
                f"{split}: {self.contradictory} pairs prefer the response that another pair of the "
                f"same prompt and responses rejects ({self.example})"
            )
        if self.repeated:
            found.append(f"{split}: {self.repeated} pairs occur more than once")
        return found


def shared_in_words(train: Repeats, validation: Repeats) -> list[str]:
    """A line about pairs of the validation that are trained on."""
    shared = sum(key in train.places for key in validation.places)
    if not shared:
        return []
    return [
        f"validation: {shared} of its {len(validation.places)} pairs are also trained on, so that "
        "it does not measure what the model makes of new ones"
    ]
