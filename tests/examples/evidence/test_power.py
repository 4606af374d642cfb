"""How many seeds, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.film_reviews.evidence.power import Power, from_pilot, main, seeds_needed
from examples.film_reviews.evidence.protocol import read_protocol
from nemo_gdpo.errors import UserError
from tests.examples.evidence.made_records import base, made, run


def test_seeds_by_hand() -> None:
    """By the table of t. A margin of one spread: with 9 seeds (2.306 + 0.889)^2 = 10.2 > 9, with 10
    (2.262 + 0.883)^2 = 9.9 <= 10. Of two: with 3 seeds (4.303 + 1.061)^2 / 4 = 7.2 > 3; with 4
    (3.182 + 0.978)^2 / 4 = 4.33 > 4; with 5 (2.776 + 0.941)^2 / 4 = 3.45 <= 5.
    """
    assert seeds_needed(0.02, 0.02) == 10
    assert seeds_needed(0.01, 0.02) == 5
    assert seeds_needed(0.0, 0.02) == 2
    # The normal's (1.960 + 0.842)^2 = 7.849 for each squared ratio, where seeds are many.
    assert seeds_needed(0.1, 0.01) == pytest.approx(785, abs=3)
    with pytest.raises(ValueError, match="must be finite"):
        seeds_needed(0.1, 0.0)
    with pytest.raises(ValueError, match="more than 10,000"):
        seeds_needed(10.0, 0.01)


def test_the_line() -> None:
    """Of 0.01, 0.03 and 0.05 the spread is 0.02. Chi squared with 2 degrees has its lower fifth at
    -2 ln 0.8 = 0.4463: 0.02 sqrt(2 / 0.4463) = 0.0423."""
    power = Power((0.01, 0.03, 0.05), 0.02)
    assert power.spread == pytest.approx(0.02)
    assert power.upper_spread == pytest.approx(0.0423, abs=5e-5)
    assert power.text().startswith("3 pilot seeds, spread over seeds 0.0200: 10 seeds find")
    assert power.text().endswith("should the spread be 0.0423, its 80% upper bound")


def test_each_seed_has_its_own_difference(tmp_path: Path) -> None:
    records = made(
        tmp_path,
        base(1),
        base(2),
        run("dpo", (0.2, 0.6), seed=1),
        run("dpo", (0.2, 0.6), seed=2),
        run("gdpo", (0.2, 0.7), seed=1),
        run("gdpo", (0.2, 0.6), seed=2),
    )
    power = from_pilot(records, read_protocol(), "gdpo", "dpo", y="semantic_diversity", margin=0.02)
    assert power.differences == pytest.approx((0.05, 0.0))
    last = from_pilot(
        records, read_protocol(), "gdpo", "dpo", y="semantic_diversity", margin=0.02, x=None
    )
    assert last.differences == pytest.approx((0.1, 0.0))


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = made(tmp_path, base(1), run("dpo", (0.2, 0.6)), run("gdpo", (0.2, 0.7)))
    with pytest.raises(UserError, match="1 comparable seeds; two are needed"):
        from_pilot(records, read_protocol(), "gdpo", "dpo", y="semantic_diversity", margin=0.02)
    words = ["--records", str(tmp_path), "--second", "dpo", "--margin", "0.02"]
    assert main([*words, "--first", "spl"]) == 2
    assert "spl: the pilot has no record of it" in capsys.readouterr().err
    assert main([*words, "--first", "gdpo", "--margin", "0"]) == 2
