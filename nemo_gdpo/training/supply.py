"""Which pairs the next update trains on: those of the sampler, or those that have a verdict.

With live labels (`label.ledger`) a pair has a verdict when somebody has answered, or when the
present model is sure of it (ADPO). Every other pair is asked about and waits; it trains when its
label is there. Updates are of whole batches, so that nothing else of a run changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nemo_gdpo.data.sampler import PreferenceSampler

Margins = Callable[[Sequence[int]], Sequence[float] | None]
"""Indices of at most a global batch of pairs -> beta h of each under the present weights, by a
forward pass; None where the run is to stop. Collective."""


class Supply(Protocol):
    """Hands out batches; every rank holds one, and all say the same."""

    waiting_for: str | None
    """What is missing, where there is no whole batch; None also where the run is to stop."""

    def next_batch(self) -> list[int] | None:
        """Indices of the next global batch; None where there is no whole one. Collective."""

    def state(self) -> dict[str, Any]:
        """What a resume needs beside the sampler's position; plain JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""

    def metrics(self) -> dict[str, float]:
        """For the line of the log."""


class AllPairs:
    """The pairs as the sampler orders them."""

    waiting_for: str | None = None

    def __init__(self, sampler: PreferenceSampler, batch_size: int) -> None:
        self._sampler = sampler
        self._size = batch_size

    def next_batch(self) -> list[int] | None:
        return self._sampler.next_global_batch(self._size)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        del state

    def metrics(self) -> dict[str, float]:
        return {}


class Labels(Protocol):
    """Answers that people have given so far."""

    def refresh(self) -> None:
        """Look for new ones. Collective."""

    def is_known(self, index: int) -> bool:
        """Whether there is an answer for a pair."""

    def ask(self, margins: Mapping[int, float]) -> set[int]:
        """Ask about pairs (index -> margin); those that are asked about now. Collective."""

    def described(self, waiting: int, *, used_up: bool) -> str:
        """What to do when a run waits for this many answers."""


class LabelledPairs:
    """Pairs with a verdict: those that waited and are answered, then those that come next.

    Args:
        sampler: order of the pairs.
        batch_size: pairs of an update.
        end: pairs that the run takes from the sampler in all.
        labels: answers so far.
        margins: of pairs under the present weights.
        gamma: |margin| up to which the model is unsure.
        most_open: pairs that may wait for an answer at once; None is any number.
    """

    def __init__(
        self,
        sampler: PreferenceSampler,
        batch_size: int,
        end: int,
        labels: Labels,
        margins: Margins,
        gamma: float,
        most_open: int | None,
    ) -> None:
        self._sampler = sampler
        self._size = batch_size
        self._end = end
        self._labels = labels
        self._margins = margins
        self._gamma = gamma
        self._most_open = most_open
        self.waiting_for: str | None = None
        self.waiting: list[int] = []
        """Pairs that were asked about, the oldest first."""
        self.held: list[int] = []
        """Pairs that are not waiting, from a batch that could not be filled."""

    def next_batch(self) -> list[int] | None:
        self._labels.refresh()
        answered = [index for index in self.waiting if self._labels.is_known(index)]
        batch, over = answered[: self._size], answered[self._size :]
        self.waiting = [i for i in self.waiting if not self._labels.is_known(i)] + over
        used_up = stops = False
        refused: list[int] = []
        while len(batch) < self._size and not used_up and self._may_ask():
            candidates = self._take(self._size - len(batch))
            if not candidates:
                break
            unsure = self._unsure(candidates)
            if unsure is None:
                refused, stops = candidates, True
                break
            batch += [index for index in candidates if index not in unsure]
            if unsure:
                asked = self._labels.ask(unsure)
                self.waiting += [index for index in candidates if index in asked]
                refused = [i for i in candidates if i in unsure and i not in asked]
                used_up = bool(refused)
        self.waiting_for = None
        if len(batch) == self._size:
            self.held = refused + self.held
            return batch
        # Looked at again by the next call: the weights are the same until then.
        self.held = batch + refused + self.held
        if not stops:
            self.waiting_for = self._labels.described(len(self.waiting), used_up=used_up)
        return None

    def _may_ask(self) -> bool:
        return self._most_open is None or len(self.waiting) < self._most_open

    def _take(self, count: int) -> list[int]:
        """The next pairs: those that were held, then fresh ones."""
        taken, self.held = self.held[:count], self.held[count:]
        fresh = min(count - len(taken), self._end - self._sampler.consumed_pairs)
        if fresh > 0:
            taken += self._sampler.next_global_batch(fresh)
        return taken

    def _unsure(self, candidates: Sequence[int]) -> dict[int, float] | None:
        """Candidates without a verdict, with their margins; None where the run is to stop."""
        unknown = [index for index in candidates if not self._labels.is_known(index)]
        if not unknown:
            return {}
        margins = self._margins(unknown)
        if margins is None:
            return None
        found = dict(zip(unknown, margins, strict=True))
        return {index: margin for index, margin in found.items() if abs(margin) <= self._gamma}

    def state(self) -> dict[str, Any]:
        return {"waiting": self.waiting, "held": self.held}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.waiting, self.held = list(state["waiting"]), list(state["held"])

    def metrics(self) -> dict[str, float]:
        return {"adpo/waiting": float(len(self.waiting))}
