"""The table of batching in benchmarks/RESULTS.md is what its command prints."""

from __future__ import annotations

import pytest

from benchmarks import batching
from tests.support.ranks import ROOT


@pytest.mark.slow
def test_the_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    batching.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "\n".join(table) in (ROOT / "benchmarks" / "RESULTS.md").read_text()
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in table}
    # Goal: at most 0.85 of the tokens of pairs with long responses.
    assert float(cells["packed, prompts shared"][1].split()[0]) < 0.85
    assert float(cells["packed"][1].split()[0]) < 1.01
