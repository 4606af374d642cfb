"""A port that the ranks are told of stays theirs until they listen on it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nemo_gdpo.errors import RunError
from nemo_gdpo.launch import ports


def test_no_connection_can_take_the_port() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found = [ports.free_port() for _ in range(200)]
    assert all(10_000 <= port <= 65_535 for port in found)
    assert not set(found) & set(ports.JOB_PORTS)
    if high - low < 50_000:
        assert not any(low <= port <= high for port in found)
        assert len(set(found)) > 150  # two that choose at once choose differently


def test_a_port_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.free_port()))
        used, unused = taken.getsockname()[1], ports.free_port()
        low, high = sorted((used, unused))
        monkeypatch.setattr(ports, "_FIRST", low)
        monkeypatch.setattr(ports, "_LAST", high)
        between = (low + 1, high - 1) if high - low > 1 else (1, 1)
        monkeypatch.setattr(ports, "_ephemeral_range", lambda: between)
        assert {ports.free_port() for _ in range(20)} == {unused}


def test_none_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.free_port()))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_FIRST", port)
        monkeypatch.setattr(ports, "_LAST", port)
        monkeypatch.setattr(ports, "_ephemeral_range", lambda: (1, 1))
        with pytest.raises(RunError, match=f"between {port} and {port} is free"):
            ports.free_port()


def test_a_range_that_covers_all_or_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    assert not 32768 <= ports.free_port() <= 60999
    (tmp_path / "range").write_text("1024\t65535\n")
    assert ports.free_port() >= 1024
