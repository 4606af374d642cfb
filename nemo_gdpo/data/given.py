"""Columns of a file that say how much a pair counts, and by how much it is preferred."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.data.checks import field, score
from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.types import Row
from nemo_gdpo.errors import UserError


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns that are read besides those of the format; None reads none.

    A format does not see them: TRL's `margin` is no difference of scores where it is the margin.
    """

    weight: str | None = None
    margin: str | None = None
    threshold: float | None = None
    """Score from which on an unpaired row is a good one; None reads its `label`."""
    group_size: int | None = None
    """Answers in each row of the format `groups`."""

    @classmethod
    def of(cls, data: DataConfig) -> PairColumns:
        """Those of a configuration."""
        return cls(data.weight_column, data.margin_column, data.label_threshold, data.group_size)

    def settings(self) -> dict[str, str | float]:
        """Key -> value of those that are read; nothing of the others: what was made without them
        before they were known stays what it was."""
        named: dict[str, str | float | None] = {
            "weight_column": self.weight,
            "margin_column": self.margin,
            "label_threshold": self.threshold,
            "group_size": self.group_size,
        }
        return {key: value for key, value in named.items() if value is not None}

    def refuse(self, format: str, path: object) -> None:
        """Refuse a format whose rows are no pairs.

        Raises:
            UserError: a column is to be read.
        """
        for key in self.settings():
            raise UserError(
                f"{path}: data.{key}: a row of {format} is no pair, and has none; set it to null"
            )

    def take(self, row: Row) -> tuple[Row, float | None, float | None]:
        """The row without these columns, its weight and its margin.

        Raises:
            BadPairError: a number is negative or not finite, or null.
            UserError: a column is missing, or holds no number.
        """
        columns = [name for name in (self.weight, self.margin) if name is not None]
        if not columns:
            return row, None, None
        data = {key: value for key, value in row.data.items() if key not in columns}
        rest = replace(row, data=data, nulls=row.nulls - {*columns})
        return rest, _number(row, self.weight, "weight"), _number(row, self.margin, "margin")


def _number(row: Row, column: str | None, what: str) -> float | None:
    if column is None:
        return None
    field(row, column)
    value = score(row, column, what)
    assert value is not None
    if value < 0:
        raise BadPairError(
            row.where,
            f"a negative {what}",
            said=f"{column!r} is {value:g}; a {what} is not negative",
            remedy="correct it or remove the row",
        )
    return value
