"""NeMo's classes and the archives that name them."""

from __future__ import annotations

import pytest

from nemo_gdpo.config.objective import OBJECTIVE_SECTIONS
from nemo_gdpo.conversion.formats.nemo_archive import SHARED_TARGET, TARGETS, target_of
from nemo_gdpo.nemo.classes import NAMED_CLASSES, model_class
from nemo_gdpo.nemo.model import MegatronGPTPreferenceModel


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.mark.parametrize("objective", OBJECTIVE_SECTIONS)
def test_archives_name_the_class_that_training_builds(objective: str) -> None:
    assert target_of(objective) == _path(model_class(objective))


def test_the_table_has_every_named_class_and_the_shared_one() -> None:
    assert set(TARGETS.values()) == {_path(cls) for cls in NAMED_CLASSES}
    assert _path(MegatronGPTPreferenceModel) == SHARED_TARGET
    assert model_class("one of yours") is MegatronGPTPreferenceModel
    assert target_of("one of yours") == SHARED_TARGET
