"""Stages run apart: one that breaks, hangs or dies is named, and the rest is run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from nemo_gdpo.cli import main
from nemo_gdpo.errors import UserError
from nemo_gdpo.gpu_check import runner
from nemo_gdpo.gpu_check.findings import StageResult, Status, at_least, at_most, judge, markdown
from nemo_gdpo.gpu_check.runner import Check
from nemo_gdpo.gpu_check.stages import STAGES, Stage, selected
from tests.support.ranks import ROOT


def _stage(name: str, *, limit_s: float = 60.0, all_gpus: bool = False) -> Stage:
    return Stage(name, "", limit_s, f"tests.gpu_check.fake_stage:{name}", all_gpus=all_gpus)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def check(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Check(tmp_path / "out", 300.0, said.append, module="tests.gpu_check.fake_stage")


@pytest.mark.slow
@pytest.mark.nightly
def test_every_ending_is_named_and_the_rest_goes_on(check: Check, said: list[str]) -> None:
    stages = [
        _stage("breaks"),
        _stage("misses"),
        _stage("hangs", limit_s=25.0),
        _stage("dies"),
        _stage("lacks"),
        _stage("passes"),
    ]
    results = {result.stage: result for result in check.run(stages, gpus=1)}
    assert [result.status for result in results.values()] == [
        *[Status.FAILED] * 4,
        Status.NOT_HERE,
        Status.PASSED,
    ]
    assert results["breaks"].reason == "RuntimeError: CUDA error: an illegal memory access"
    assert [row.name for row in results["breaks"].measurements] == ["gap"]
    assert results["misses"].reason == ("gap is 0.5 nats, not <= 0.1; other gap is nan, not <= 0.1")
    assert results["hangs"].reason.startswith("took more than 25 s; waiting for rank 1 (")
    assert results["dies"].reason.startswith("ended with 139; Segmentation fault (")
    assert results["lacks"].reason == "this machine has no GPU"
    assert len(said) == 6
    document = json.loads((check.folder / "results.json").read_text())
    assert [stage["status"] for stage in document["stages"]] == [r.status for r in results.values()]
    table = (check.folder / "results.md").read_text()
    assert "| misses | gap | 0.5 nats | <= 0.1 | **no** |" in table
    assert "| passes | gap | 1e-06 nats | <= 0.0001 | ok |" in table

    # Again: what failed is run once more, the rest is kept.
    check.run([_stage("passes"), _stage("misses"), _stage("lacks")], gpus=1)
    begun = (check.folder / "begun.txt").read_text().split()
    assert begun[6:] == ["misses"]


@pytest.mark.slow
def test_a_result_of_another_machine_is_not_kept(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    check.run([_stage("passes")], gpus=1)
    other = {**runner.describe_machine(), "gpus": "1 x NVIDIA H100"}
    monkeypatch.setattr(runner, "describe_machine", lambda: other)
    check.run([_stage("passes")], gpus=1)
    assert (check.folder / "begun.txt").read_text().split() == ["passes", "passes"]


@pytest.mark.slow
def test_one_rank_on_every_gpu(check: Check) -> None:
    (result,) = check.run([_stage("counts", all_gpus=True)], gpus=2)
    assert result.measurements[0].value == 2
    names = {path.name for path in (check.folder / "counts").iterdir()}
    assert {"rank0", "rank1"} <= names


def test_out_of_time(tmp_path: Path, said: list[str]) -> None:
    check = Check(tmp_path, 5.0, said.append, module="tests.gpu_check.fake_stage")
    (result,) = check.run([_stage("passes")], gpus=1)
    assert result.status is Status.NOT_RUN
    assert "start again for the rest" in result.reason


def test_limits_judge_nan_as_bad() -> None:
    assert at_most("x", 1.0, 1.0).ok and at_least("x", 1.0, 1.0).ok
    assert not at_most("x", 1.1, 1.0).ok and not at_least("x", 0.9, 1.0).ok
    assert not at_most("x", math.nan, 1.0).ok and not at_least("x", math.nan, 1.0).ok
    assert judge("s", [at_most("x", 0.0, 1.0)], 1.0, {}).status is Status.PASSED


def test_results_survive_json() -> None:
    result = judge("s", [at_most("x", 2.0, 1.0, "nats")], 1.5, {"torch": "2"})
    assert StageResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert "| s | failed | 2 | x is 2 nats, not <= 1 |" in markdown([result])


def test_stages_can_be_found_and_fit_the_time() -> None:
    for stage in STAGES:
        assert callable(stage.function())
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert [stage.name for stage in selected("head, fp32")] == ["fp32", "head"]
    with pytest.raises(UserError, match="--only nose: there is no such stage; known: devices"):
        selected("nose")


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--gpu"]) == 2
    assert "torch sees no GPU here" in capsys.readouterr().err
    assert main(["doctor", "--gpu", "--list"]) == 0
    assert capsys.readouterr().out.count("at most") == len(STAGES)
    assert dataclasses.is_dataclass(STAGES[0])
