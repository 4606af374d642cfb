"""The `label` section of training: people who are asked while a run goes on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nemo_gdpo.config.base import FIXED, FREE, OnResume, PathText, Section

LabelSource = Literal["person", "judge", "pseudo", "data"]
"""Who may have given an answer."""


class LiveLabelsConfig(Section):
    """With a ledger, `objective=adpo` asks people; without one, the data stands for them."""

    on_resume: ClassVar[OnResume | None] = FREE
    ledger: Annotated[PathText | None, FIXED] = None
    """The ledger (SQLite, on a disk of rank 0's node), made where it is missing. Pairs that the
    model is unsure of are asked about there and train when an answer is there; which response
    stands as chosen in the data then counts for nothing. Null takes the data's word."""
    budget: Annotated[int, Field(ge=0)] | None = None
    """Pairs that this ledger may ever ask about; null leaves its limit as it is."""
    most_open: Annotated[int, Field(ge=1)] | None = 256
    """Pairs that may wait for an answer at once: with so many, a run that cannot fill a batch stops
    and goes on when there are answers. Null asks about all that it is unsure of first."""
    seed: Annotated[int, Field(ge=0), FIXED] = 1234
    """Seed of the left/right order in which the responses are shown."""
    sources: tuple[LabelSource, ...] = Field(default=("person", "judge", "data"), strict=False)
    """Whose answers count."""
