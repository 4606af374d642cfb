"""The collector rests while a command imports its libraries, and nowhere else."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from nemo_gdpo import cli, importing
from nemo_gdpo.importing import own_process, uncollected


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(importing, "_owned", False)
    assert gc.get_freeze_count() == 0
    yield
    gc.unfreeze()
    gc.enable()


def test_new_modules_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    own_process()
    with uncollected():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "a_new_one", ModuleType("a_new_one"))
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_where_nothing_new_comes_nothing_is_frozen() -> None:
    """A model that was there meanwhile, and holds itself, could never be collected again."""
    own_process()
    with uncollected():
        import json  # noqa: F401 - it is there already
    assert gc.get_freeze_count() == 0


def test_it_leaves_a_collector_off_that_was_off_and_an_error_through() -> None:
    own_process()
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
    gc.enable()
    with pytest.raises(ModuleNotFoundError), uncollected():
        raise ModuleNotFoundError("torch")
    assert gc.isenabled()


def test_a_process_is_own_by_its_command_line_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["--version"])
    with uncollected():
        assert gc.isenabled()
    monkeypatch.setattr(sys, "argv", ["nemo-gdpo", "--version"])
    cli.main()
    with uncollected():
        assert not gc.isenabled()
    assert capsys.readouterr().out.startswith("nemo-gdpo ")
