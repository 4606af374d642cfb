"""Each flag at its limit, from both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.evaluation import EVALUATE, EvaluationConfig
from nemo_gdpo.evaluation.report.flags import find_flags
from nemo_gdpo.evaluation.results import Interval


def settings(tmp_path: Path, *overrides: str) -> EvaluationConfig:
    arguments = [f"evaluation.runs={{x: {tmp_path}}}", f"output_dir={tmp_path}", *overrides]
    return EVALUATE.parse(compose(arguments, root=EVALUATE).plain).evaluation


def names(
    evaluation: EvaluationConfig, type_token_ratio: float | None = None, **means: float
) -> list[str]:
    metrics = {name: Interval(mean, mean, mean, 3) for name, mean in means.items()}
    return [flag.name for flag in find_flags(metrics, type_token_ratio, evaluation)]


@pytest.mark.parametrize(
    ("metric", "sound", "degenerate", "flag"),
    [
        ("valid", 0.8, 0.79, "invalid"),
        ("repetition", 0.2, 0.21, "repetitive"),
        ("surprise", 1.5, 1.51, "noise"),
    ],
)
def test_limits(tmp_path: Path, metric: str, sound: float, degenerate: float, flag: str) -> None:
    evaluation = settings(tmp_path)
    assert names(evaluation, **{metric: sound}) == []
    assert names(evaluation, **{metric: degenerate}) == [flag]
    # The limit is the configuration's, not the function's.
    moved = settings(tmp_path, f"evaluation.flags.{metric}={degenerate}")
    assert names(moved, **{metric: degenerate}) == []


def test_what_was_not_measured_is_not_judged(tmp_path: Path) -> None:
    assert names(settings(tmp_path)) == []


def test_all_that_is_wrong_is_named(tmp_path: Path) -> None:
    found = names(settings(tmp_path), 0.9, valid=0.1, repetition=0.5, surprise=3.0)
    assert found == ["invalid", "repetitive", "noise", "type_token_ratio"]


def test_diversity_alone_says_nothing(tmp_path: Path) -> None:
    nothing = ["evaluation.rewards=[]"]
    assert names(settings(tmp_path, *nothing)) == ["unmeasured"]
    assert names(settings(tmp_path, *nothing, "evaluation.reference_model=/m")) == []
