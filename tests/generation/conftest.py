"""For the tests of sampling: a server that answers at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nemo_gdpo.io import http
from tests.support.servers import FakeServer, completions_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """Whose failures are tried again without a pause."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.001)
    with completions_server(FakeServer()) as running:
        yield running
