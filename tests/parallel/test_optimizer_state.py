"""The distributed optimizer's state: gathered on one rank for a checkpoint, loaded by any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parallel.optimizer_ranks import MODEL
from tests.parallel.settings import save_models
from tests.support.checkpoints import stored
from tests.support.ranks import run_ranks


def _ranks(size: int, root: Path, source: str) -> list[str]:
    logs = [root / f"of{size}.{bool(source)}.rank{rank}.log" for rank in range(size)]
    codes = run_ranks("tests.parallel.optimizer_ranks", [str(root), source], logs)
    said = [log.read_text() for log in logs]
    assert not any(codes), said
    return said


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("optimizer")
    save_models(made, MODEL)
    return made


@pytest.fixture(scope="module")
def said(root: Path) -> list[str]:
    """What two data-parallel ranks say while they write `of2`."""
    return _ranks(2, root, "")


def _assert_same(left: Path, right: Path) -> None:
    one, other = stored(left), stored(right)
    assert one.keys() == other.keys()
    assert sum("exp_avg" in name for name in one) > 0
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_only_one_rank_of_each_shard_gathers_it(said: list[str]) -> None:
    """Gathered everywhere, it is 12 bytes a parameter in every process: 24 GB a rank of an 8B."""
    held = [[line for line in text.splitlines() if "held" in line] for text in said]
    everywhere = held[0][1].removeprefix("step 2: ")
    assert int(everywhere.removeprefix("held ")) > 10
    assert held == [
        [f"step 1: {everywhere}", f"step 2: {everywhere}"],
        ["step 1: held 0", f"step 2: {everywhere}"],
    ]
    assert not any("warned" in text for text in said), said


def test_the_checkpoint_is_the_same_either_way(root: Path, said: list[str]) -> None:
    _assert_same(root / "of2" / "step_00000001", root / "of2" / "step_00000002")
    for name in ("__0_0.distcp", "metadata.json"):
        gathered, everywhere = (
            (root / "of2" / step / "dist" / name).read_bytes()
            for step in ("step_00000001", "step_00000002")
        )
        assert gathered == everywhere, name


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_loaded_is_what_was_saved(root: Path, said: list[str], size: int) -> None:
    source = root / "of2" / "step_00000001"
    _ranks(size, root, str(source))
    _assert_same(root / f"of{size}again" / "step_00000001", source)
