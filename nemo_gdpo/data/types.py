"""Types of the data package: raw pairs from a file, tokenised pairs to a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
"""One turn of a conversation: exactly the keys `role` and `content`."""

Messages = list[Message]


@dataclass(frozen=True)
class RawPair:
    """A preference pair as people write it.

    Either all three of `prompt`, `chosen` and `rejected` are text (they are joined as they stand,
    without a chat template), or all three are messages: the conversation so far, and one assistant
    message per response. Scores are in the units of the data set, higher is better.
    """

    id: str
    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    chosen_score: float | None = None
    rejected_score: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    """File and line, for error messages; not part of the data."""
    weight: float | None = None
    """Factor of its loss, where a column of weights is read."""
    margin: float | None = None
    """What its log-ratio is to exceed, where a column of margins is read."""
    is_ordered: bool = True
    """False: two answers of a group, none of which is preferred to the other."""
    label: bool | None = None
    """Of an unpaired row, whose response stands in both places: whether it is a good one."""
    partner: RawPair | None = None
    """The unpaired row that shares this one's place in the batch; None: it stands alone."""

    @property
    def place(self) -> str:
        """File, line and id, for error messages."""
        return f"{self.where}, pair {self.id!r}" if self.where else f"pair {self.id!r}"


@dataclass(frozen=True)
class TokenizedResponse:
    """Response tokens. A complete response ends in the token that generation stops on; a response
    that truncation cut has no end token and `complete=False`."""

    ids: tuple[int, ...]
    complete: bool


@dataclass(frozen=True)
class TokenizedPair:
    """Prompt and both responses as token ids; the prompt carries the BOS, when there is one."""

    id: str
    prompt_ids: tuple[int, ...]
    chosen: TokenizedResponse
    rejected: TokenizedResponse
    chosen_score: float | None = None
    rejected_score: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    weight: float | None = None
    margin: float | None = None
    labels: tuple[bool, bool] | None = None
    """Of two unpaired rows in the places of chosen and rejected; None: a pair."""
    second_prompt_ids: tuple[int, ...] | None = None
    """Prompt of the second of them; None: both responses have one prompt."""

    @property
    def rejected_prompt_ids(self) -> tuple[int, ...]:
        """Prompt of the rejected response, or of the second row."""
        return self.prompt_ids if self.second_prompt_ids is None else self.second_prompt_ids

    @property
    def sequences(self) -> tuple[tuple[tuple[int, ...], TokenizedResponse], ...]:
        """(prompt, response) of both sides."""
        return (self.prompt_ids, self.chosen), (self.rejected_prompt_ids, self.rejected)


@dataclass(frozen=True)
class Row:
    """One record of a file, with the place it came from ("train.jsonl, line 3")."""

    data: Mapping[str, Any]
    where: str
    number: int
    """1-based line (or row) number."""
    nulls: frozenset[str] = frozenset()
    """Columns that are there and hold null; `data` is without them."""


@dataclass
class ReadStats:
    """Counts of what reading left out; filled while `read_pairs` is consumed."""

    pairs: int = 0
    ties_dropped: int = 0
    bad_dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of pairs, only with `on_bad_pair="drop"`."""
