"""The collector rests while libraries are imported, and does not look at them again."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nemo_gdpo.importing import uncollected
from tests.support.ranks import clean_environment

COUNTED = """
import gc
runs = []
gc.callbacks.append(lambda phase, info: runs.append(info["generation"]) if phase == "start" else 0)
from nemo_gdpo.platform import current_platform
current_platform()
print(len(runs), gc.isenabled(), gc.get_freeze_count() > 500_000)
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_inside_and_what_is_left_is_frozen() -> None:
    gc.unfreeze()
    with uncollected():
        assert not gc.isenabled()
        kept = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(kept)


def test_it_leaves_a_collector_off_that_was_off_and_an_error_through() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
    gc.enable()
    with pytest.raises(ModuleNotFoundError), uncollected():
        raise ModuleNotFoundError("torch")
    assert gc.isenabled()


def test_torch_and_megatron_are_imported_without_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNTED],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    runs, enabled, frozen = done.stdout.split()
    # What comes before the package's first block, and between its blocks.
    assert int(runs) < 20, done.stderr
    assert (enabled, frozen) == ("True", "True")
