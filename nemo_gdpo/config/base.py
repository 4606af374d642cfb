"""What every section of the configuration has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
"""A path or a name: null stands for none, never empty text."""


class Section(BaseModel):
    """A section: unknown keys are errors, values are not coerced, instances do not change.

    An integer is accepted where a real number is meant; text is never turned into a number.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )
