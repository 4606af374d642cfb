"""For all tests: the CPU platform precedes every megatron import, whatever is collected first,
converted models go to a cache of the session, not to the user's, and tests are sorted into tiers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from nemo_gdpo.config.checks_layers import VARIABLES
from nemo_gdpo.platform import current_platform
from tests.support.ranks import WORLD
from tests.support.tiers import EVERYTHING

TESTS = Path(__file__).parent
SLOW_ROOMS = ("families", "gpu_path", "parallel", "system", "traces")
"""Folders whose tests start ranks, command lines, engines, a browser or Slurm."""
RANK_ROOMS = ("families", "gpu_path", "parallel", "traces")
"""Folders whose tests start several ranks."""
UNHURRIED_ROOMS = ("families", "traces")
"""Those of them that watch no clock, and may run beside others."""

current_platform()
# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["NEMO_GDPO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _nobodys_rank() -> Iterator[None]:
    """A test that leaves this process one of several ranks would break whichever comes after."""
    before = {name: os.environ.get(name) for name in WORLD}
    yield
    assert {name: os.environ.get(name) for name in WORLD} == before


@pytest.fixture(scope="module", autouse=True)
def _nobodys_attention() -> Iterator[None]:
    """megatron exports the back ends of a model that it builds; to a check they are the user's."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what only `make test-all` runs to it."""
    if EVERYTHING:
        return
    left = [item for item in items if item.get_closest_marker("nightly") is not None]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item.get_closest_marker("nightly") is None]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: a run that is stopped for its time has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        said = (report.longreprtext.splitlines() or [""])[-1]
        print(f"\nfailed ({report.when}): {report.nodeid}: {said}", file=sys.__stdout__, flush=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of whole rooms; single slow ones elsewhere are marked where they stand."""
    room = item.path.relative_to(TESTS).parts[0]
    if room in SLOW_ROOMS:
        item.add_marker(pytest.mark.slow)
    if room in RANK_ROOMS:
        item.add_marker(pytest.mark.parallel)


@cache
def worker_group(file: str) -> str:
    """Which files share a worker: those with tests marked `parallel` do, those marked `engine`,
    those of real Slurm, and each of the unhurried rooms, so that one of each kind runs at a time;
    any other has its own.

    The controller of xdist knows no marks, only names of tests, so the file's text is read.
    """
    path = TESTS.parent / file
    if path.parent.name == "system" and path.name.startswith("test_slurm_"):
        return "slurm"
    text = path.read_text()
    if "mark.engine" in text:
        return "engine"
    room = path.relative_to(TESTS).parts[0]
    if room in UNHURRIED_ROOMS:
        return room
    return "parallel" if room in RANK_ROOMS or "mark.parallel" in text else file


class TieredScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of a file stay together, and tests that start many processes run one after another.

    `--dist loadgroup` would do the same by marks; with pytest 9.2 it is without effect.
    """

    def _split_scope(self, nodeid: str) -> str:
        return worker_group(nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TieredScheduling:
    """The one way of distributing tests, whatever `--dist` says."""
    return TieredScheduling(config, log)
