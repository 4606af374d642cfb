"""The benchmark of growth: its table on made-up numbers, and its quick form."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.common import Parts


def test_the_table_has_medians_and_exponents(tmp_path: Path) -> None:
    """Seconds grow with the square, memory with nothing."""
    asked = growth.parse([])
    parts = Parts(tmp_path / "results.json", {}, asked)
    for size in (10, 20, 40):
        for number, factor in enumerate((1.0, 3.0, 2.0)):
            found = {"seconds": factor * size**2, "bytes": growth.GIB}
            parts.parts[f"length, {size}, {number}"] = found
    heads = ("length", "CPU seconds")
    assert list(growth.table(parts, "length", (10, 20, 40, 80), heads)) == [
        "| length | CPU seconds | GiB |",
        "|---|---|---|",
        "| 10 | 200 [100, 300] | 1 [1, 1] |",
        "| 20 | 800 [400, 1.2e+03] | 1 [1, 1] |",
        "| 40 | 3.2e+03 [1.6e+03, 4.8e+03] | 1 [1, 1] |",
        "| exponent | 2.00 | 0.00 |",
        "",
    ]


def test_what_is_too_small_to_be_seen_has_no_exponent(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "results.json", {}, growth.parse([]))
    parts.parts = {f"other rank, {n}, 0": {"seconds": n, "bytes": 0} for n in (1, 10)}
    *_, last, _ = growth.table(parts, "other rank", (1, 10), ("pairs", "CPU seconds"))
    assert last == "| exponent | 1.00 |  |"


@pytest.mark.parametrize("length", [256, 4096])
def test_an_update_has_as_many_tokens_whatever_the_length(length: int) -> None:
    asked = growth.parse([])
    work = growth.even(asked, length)
    assert work.settings.batch * work.lengths.useful == asked.tokens
    assert work.lengths.prompt + work.lengths.chosen == work.settings.max_length == length


def test_lengths_have_to_fit_into_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.parse(["--lengths", "3000"])
    assert "--tokens 8192 is no multiple of twice each of --lengths" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parallel
def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All tables, every size in them."""
    assert growth.main(["--quick", "--folder", str(tmp_path)]) == 0
    rows = [
        line.split(" | ")[0][2:] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert [row for row in rows if row.isdigit() or row == "exponent"] == [
        "64", "128", "exponent", "40", "160", "exponent", "40", "160", "exponent",
        "1", "2", "exponent",
    ]  # fmt: skip
