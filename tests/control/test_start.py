"""A rank that cannot start says so by itself when nobody is there to hear it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_gdpo import cli
from nemo_gdpo.control import start
from nemo_gdpo.control.start import NotAllCameError, refuse_to_start, start_together
from nemo_gdpo.errors import EXIT_USER_ERROR, UserError
from nemo_gdpo.launch.ports import free_port
from nemo_gdpo.launch.slurm import WORLD, is_invited

ERROR = UserError("data.train_path=x does not exist; correct the path")


@pytest.fixture
def invited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of two, of which the other never starts."""
    values = ("1", "2", "127.0.0.1", str(free_port()))
    for name, value in zip(WORLD, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start, "PATIENCE_SECONDS", 1.0)


@pytest.mark.usefixtures("invited")
def test_it_does_not_wait_for_ever_to_be_heard() -> None:
    assert refuse_to_start(ERROR) is None


@pytest.mark.usefixtures("invited")
def test_a_rank_that_can_start_names_the_place_where_it_waited() -> None:
    told = (
        r"2 ranks did not meet at 127\.0\.0\.1:\d+ within 0\.02 minutes \(rank 1: .*\); start all "
        r".* raise trainer\.collective_timeout_minutes$"
    )
    with pytest.raises(NotAllCameError, match=told) as caught:
        start_together(timeout_minutes=0.02)
    assert "\n" not in str(caught.value)
    assert refuse_to_start(caught.value) is None  # they have been waited for already


def test_a_process_that_is_alone_raises_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORLD:
        monkeypatch.delenv(name, raising=False)
    assert refuse_to_start(ERROR) is ERROR
    start_together(timeout_minutes=0.02)


@pytest.mark.parametrize(
    ("values", "invites"),
    [
        (("0", "2", "localhost", "1"), True),
        (("0", "1", "localhost", "1"), False),
        (("0", "2", "", "1"), False),
        ((None, "2", "localhost", "1"), False),
    ],
)
def test_a_world_of_several_needs_a_place_to_meet(
    values: tuple[str | None, ...], invites: bool
) -> None:
    named = {name: value for name, value in zip(WORLD, values, strict=True) if value is not None}
    assert is_invited(named) == invites


@pytest.mark.usefixtures("invited")
def test_the_command_line_prints_what_nobody_else_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any rank prints it, not rank 0 alone."""
    file = tmp_path / "not-here.yaml"
    assert cli.main(["train", "--config", str(file)]) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert told.startswith(f"nemo-gdpo: error: rank 1: --config {file}: file not found; ")
    assert told.count("\n") == 1
