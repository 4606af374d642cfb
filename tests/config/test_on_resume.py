"""What becomes of every key when a run is resumed is declared where the key is."""

from __future__ import annotations

from nemo_gdpo.config.base import FIXED, FREE, Section, on_resume_of
from nemo_gdpo.config.help import keys
from nemo_gdpo.config.schema import TRAIN


def test_every_training_key_says_what_becomes_of_it() -> None:
    undeclared = [key.name for key in keys(TRAIN) if key.on_resume is None]
    assert undeclared == []


def test_what_gives_the_numbers_their_meaning_may_not_change() -> None:
    fixed = {key.name for key in keys(TRAIN) if key.on_resume is FIXED}
    assert {"precision", "model.global_batch_size", "data.seed"} <= fixed
    assert {key.name for key in keys(TRAIN) if key.name.startswith("objective.")} <= fixed


def test_an_annotation_goes_before_the_section() -> None:
    class Some(Section):
        on_resume = FREE
        one: int = 1

    assert on_resume_of(Some, "one") is FREE


def test_nothing_is_declared_by_default() -> None:
    class Some(Section):
        one: int = 1

    assert on_resume_of(Some, "one") is None
