"""How many seeds a claim takes, from a pilot.

    python -m examples.film_reviews.evidence.power --records DIR --first gdpo-tb --second dpo \
        --y semantic_diversity --margin 0.02

The spread over seeds of the difference between two sides, at the same reward or after the last
update, says how many seeds find a difference as large as the margin with 80 % probability, by a
two-sided paired t-test at 5 %. A pilot of few seeds knows that spread badly, so the line also says
how many it takes should the spread be as large as the pilot can hardly rule out.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from examples.film_reviews.evidence.curves import Comparison, Side
from examples.film_reviews.evidence.protocol import Protocol, read_protocol
from examples.film_reviews.evidence.records import BASE, Records, read_records
from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR, UserError

POWER, LEVEL = 0.8, 0.05
BOUND = 0.8
"""How sure the larger spread is an upper bound."""
MOST = 10_000


@dataclass(frozen=True)
class Power:
    """What a pilot says."""

    differences: tuple[float, ...]
    """First side minus second, one a seed."""
    margin: float

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return float(np.std(self.differences, ddof=1))

    @property
    def upper_spread(self) -> float:
        """Upper bound of the spread, by the chi-squared distribution."""
        freedom = len(self.differences) - 1
        return self.spread * math.sqrt(freedom / float(stats.chi2.ppf(1.0 - BOUND, freedom)))

    def text(self) -> str:
        """One line."""
        return (
            f"{len(self.differences)} pilot seeds, spread over seeds {self.spread:.4f}: "
            f"{seeds_needed(self.spread, self.margin)} seeds find a difference of "
            f"{self.margin:g} with {POWER:.0%} probability; "
            f"{seeds_needed(self.upper_spread, self.margin)} should the spread be "
            f"{self.upper_spread:.4f}, its {BOUND:.0%} upper bound"
        )


def seeds_needed(spread: float, margin: float) -> int:
    """The least n >= 2 with n >= ((t_{1-level/2} + t_{power}) spread / margin)^2 at n - 1 degrees.

    The normal approximation with Student's t in place of the normal's quantiles.

    Raises:
        ValueError: the spread is negative or not finite, the margin not positive, or more than
            10,000 would be needed.
    """
    if not 0 <= spread < math.inf or not margin > 0:
        raise ValueError(f"spread {spread} and margin {margin}: must be finite and positive")
    wanted = [1.0 - LEVEL / 2.0, POWER]
    # Student's quantiles lie above the normal's, so it never takes fewer than by those.
    fewest = (float(stats.norm.ppf(wanted).sum()) * spread / margin) ** 2
    for n in range(max(2, math.ceil(min(fewest, MOST + 1))), MOST + 1):
        if n >= (float(stats.t.ppf(wanted, n - 1).sum()) * spread / margin) ** 2:
            return n
    raise ValueError(f"more than {MOST:,} seeds for a margin of {margin:g}")


def from_pilot(
    records: Records,
    protocol: Protocol,
    first: str,
    second: str,
    *,
    y: str,
    margin: float,
    x: str | None = "reward",
) -> Power:
    """One difference a seed, each from that seed's own curves.

    Args:
        records: of the pilot.
        protocol: for the levels that are asked.
        first, second: arms or families; arms where x is None.
        y: metric.
        margin: the smallest difference that would matter.
        x: compare where this metric is equal, at the first of the protocol's shares; None: after
            the last update.

    Raises:
        UserError: a side was not run, or fewer than two seeds can be compared.
    """
    for name in (first, second):
        if not records.has(name):
            raise UserError(f"{name}: the pilot has no record of it; name another arm or family")
    arms = [*records.members(first), *records.members(second)]
    comparison = Comparison(records, resamples=200)
    found = []
    for seed in records.seeds([BASE, *arms]):
        if x is None:
            level = comparison.last(first, second, [seed], y)
        else:
            # Half of the gain: near its end a single seed's curve is not reached by every draw.
            shares, least = protocol.shares[:1], protocol.least_gain.get(x, 0.0)
            (level,) = comparison.matched(
                Side(first), Side(second), [seed], x=x, y=y, shares=shares, least_gain=least
            )
        if level.difference is not None:
            found.append(level.difference.mean)
    if len(found) < 2:
        raise UserError(f"{first} and {second}: {len(found)} comparable seeds; two are needed")
    return Power(tuple(found), margin)


def main(argv: list[str] | None = None) -> int:
    """Print the line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.film_reviews.evidence.power",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=Path, required=True, help="directory of the pilot's")
    parser.add_argument("--first", required=True)
    parser.add_argument("--second", required=True)
    parser.add_argument("--y", default="semantic_diversity")
    parser.add_argument("--x", default="reward", help="`none`: after the last update")
    parser.add_argument("--margin", type=float, required=True)
    options = parser.parse_args(argv)
    try:
        if not options.margin > 0:
            raise UserError("--margin: must be above 0")
        power = from_pilot(
            read_records(options.records),
            read_protocol(),
            options.first,
            options.second,
            y=options.y,
            margin=options.margin,
            x=None if options.x == "none" else options.x,
        )
        print(power.text())
    except (UserError, ValueError) as error:
        print(f"power: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
