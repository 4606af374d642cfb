"""Pairs that occur twice: in one split, with the opposite preference, or in both splits."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Repeats:
    """Pairs of one split by their tokens, and what was found among them."""

    places: dict[int, str] = field(default_factory=dict)
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
        key, opposite = hash((prompt, chosen, rejected)), hash((prompt, rejected, chosen))
        if key in self.places:
            self.repeated += 1
        if opposite in self.places:
            self.contradictory += 1
            self.example = self.example or f"{self.places[opposite]} and {where}"
        self.places.setdefault(key, where)

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
    shared = len(train.places.keys() & validation.places.keys())
    if not shared:
        return []
    return [
        f"validation: {shared} of its {len(validation.places)} pairs are also trained on, so that "
        "it does not measure what the model makes of new ones"
    ]
