"""Names on the hub, told apart from paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_gdpo.config.hub import may_be_hub_name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/name", True),
        ("owner-1/data_set", True),
        ("name", False),
        ("owner/name/more", False),
        ("/owner/name", False),
        ("owner/pairs.jsonl", False),
        ("here/name", False),
    ],
)
def test_what_may_be_a_name(
    path: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert may_be_hub_name(path) is expected
