"""A desk for the tests of the steps of `nemo-gdpo label`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.labeling.commands import Desk


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)
