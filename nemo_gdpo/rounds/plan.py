"""The stages of a run of rounds, and which of them wait for which."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["generate", "score", "data", "train"]
KINDS: tuple[Kind, ...] = ("generate", "score", "data", "train")
"""In their order within a round."""


@dataclass(frozen=True)
class Stage:
    """One command of a round."""

    round: int
    """From 1."""
    kind: Kind

    @property
    def name(self) -> str:
        """`round_001/train`: its key in rounds.json."""
        return f"{folder(self.round)}/{self.kind}"


def folder(number: int) -> str:
    """A round's directory."""
    return f"round_{number:03d}"


@dataclass(frozen=True)
class Plan:
    """All stages of so many rounds."""

    number: int
    """Rounds."""
    staleness: int = 0
    """Trainings that the sampling model may be behind."""

    def stages(self) -> Iterator[Stage]:
        """In the order in which one machine carries them out."""
        for number in range(1, self.number + 1):
            for kind in KINDS:
                yield Stage(number, kind)

    def sampled_from(self, number: int) -> int:
        """The round whose model a round samples from; 0 is what the first one starts from."""
        return max(0, number - 1 - self.staleness)

    def staleness_of(self, number: int) -> int:
        """Trainings between the model that a round samples from and the one that it trains."""
        return number - 1 - self.sampled_from(number)

    def needs(self, stage: Stage) -> list[Stage]:
        """Stages whose results a stage reads."""
        number = stage.round
        if stage.kind == "generate":
            source = self.sampled_from(number)
            return [Stage(source, "train")] if source else []
        if stage.kind == "score":
            return [Stage(number, "generate")]
        if stage.kind == "data":
            return [Stage(earlier, "score") for earlier in range(1, number + 1)]
        before = [Stage(number - 1, "train")] if number > 1 else []
        return [*before, Stage(number, "data")]

    def ready(self, done: Collection[Stage]) -> list[Stage]:
        """Stages that can begin now, training first: nothing else waits for devices so long."""
        found = [
            stage
            for stage in self.stages()
            if stage not in done and all(before in done for before in self.needs(stage))
        ]
        return sorted(found, key=lambda stage: stage.kind != "train")


def round_directory(output: Path, number: int) -> Path:
    """Where a round lies."""
    return output / folder(number)
