"""Building the image takes root, a network and minutes: only `make image-test` asks for it.

Its layers go to a folder that is removed, or kept for the next run where NEMO_GDPO_IMAGE_STORAGE
names one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.engine import Engine, why_not

ASKED = bool(os.environ.get("NEMO_GDPO_IMAGE_TEST"))
KEPT = os.environ.get("NEMO_GDPO_IMAGE_STORAGE")
collect_ignore = [] if ASKED else ["test_built.py", "test_over_a_base.py"]
MEASURED: list[str] = []
"""Lines for the end of the run."""


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    lacking = why_not()
    assert lacking is None, lacking
    made = Engine(Path(KEPT) if KEPT else tmp_path_factory.mktemp("engine"))
    made.folder.mkdir(parents=True, exist_ok=True)
    made.debian()
    yield made
    MEASURED.extend(f"{what}: {seconds:.0f} s" for what, seconds in made.seconds.items())
    if not KEPT:
        made.remove()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, after the tests' own lines."""
    if MEASURED:
        terminalreporter.section("image")
        for line in MEASURED:
            terminalreporter.write_line(line)
