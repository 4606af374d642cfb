"""For the tests of stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nemo_gdpo.training.mesh import leave_world


@pytest.fixture
def _left_afterwards() -> Iterator[None]:
    """A stage has a process of its own, and leaves the world at its end."""
    yield
    leave_world()
