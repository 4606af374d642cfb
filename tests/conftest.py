"""For all tests: the CPU platform precedes every megatron import, whatever is collected first,
converted models go to a cache of the session, not to the user's, and tests are sorted into tiers.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_gdpo.platform import current_platform

TESTS = Path(__file__).parent
SLOW_ROOMS = ("families", "parallel", "system", "traces")
"""Folders whose tests start ranks, command lines, engines, a browser or Slurm."""
RANK_ROOMS = ("families", "parallel")
"""Folders whose tests start several ranks."""

current_platform()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["NEMO_GDPO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark rooms as slow, and say which tests share a worker under `--dist loadgroup`.

    Tests of one file share its fixtures. Tests marked `parallel` start more processes than there
    are cores, or watch a clock: all of them share one worker, and so run one after the other.
    """
    for item in items:
        file = item.path.relative_to(TESTS)
        if file.parts[0] in SLOW_ROOMS:
            item.add_marker(pytest.mark.slow)
        if file.parts[0] in RANK_ROOMS:
            item.add_marker(pytest.mark.parallel)
        alone = item.get_closest_marker("parallel") is not None
        item.add_marker(pytest.mark.xdist_group("parallel" if alone else file.as_posix()))
