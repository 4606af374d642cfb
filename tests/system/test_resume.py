"""Stopped and resumed is the same as uninterrupted: to the bit on one mesh, to 1e-5 on another."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import stored
from tests.support.commands import (
    Result,
    common,
    finish,
    metrics,
    several,
    started,
    steps,
    wait_for_step,
    without_timing,
)
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = pytest.mark.parallel

STEPS = 30
PP2 = ["parallel=pp2"]
TP2_PP2 = ["parallel=tp2_pp2"]
CONVERTED = "model.cache_converted=true"
"""The other way to load the same weights than that of the run before."""
DISTRIBUTED = ["optim.use_distributed_optimizer=true"]
SAVES = ["trainer.save_interval=10", "trainer.keep_checkpoints=9"]
ADPO = ["objective=adpo", "objective.gamma=0.05"]
"""Its query count is part of what a checkpoint must carry."""


def run(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return common(model, data, output, *steps(STEPS), *SAVES, *ADPO, *more)


def checkpoint(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step_{step:08d}"


def assert_same_tensors(left: Path, right: Path) -> None:
    one, other = stored(left), stored(right)
    assert one.keys() == other.keys()
    assert any("exp_avg" in name for name in one), sorted(one)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_same_run(resumed: Path, whole: Path) -> None:
    """Metrics, weights, optimizer and trainer state, all to the bit."""
    assert without_timing(metrics(resumed)) == without_timing(metrics(whole))
    assert_same_tensors(checkpoint(resumed, STEPS), checkpoint(whole, STEPS))
    states = [
        json.loads((checkpoint(o, STEPS) / "trainer_state.json").read_text())
        for o in (resumed, whole)
    ]
    assert states[0] == states[1]
    generators = [sorted((checkpoint(o, STEPS) / "rng").iterdir()) for o in (resumed, whole)]
    for one, other in zip(*generators, strict=True):
        assert one.read_bytes() == other.read_bytes()


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def copy_run(source: Path, target: Path, *, up_to: int) -> Path:
    """An output directory as it was when the checkpoint of step `up_to` was the newest."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > up_to:
            shutil.rmtree(path)
    shutil.rmtree(target / "hf", ignore_errors=True)
    return target


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(root: Path, model: Path, data: Path) -> dict[str, Path]:
    """Uninterrupted runs on one rank: plain, and with the distributed optimizer."""
    outputs = {"plain": root / "plain", "distributed": root / "distributed"}
    done = several(
        root / "logs-whole",
        {
            "plain": ["train", *run(model, data, outputs["plain"], "export_hf=true")],
            "distributed": ["train", *run(model, data, outputs["distributed"], *DISTRIBUTED)],
        },
    )
    for name, result in done.items():
        assert result.status == 0, f"{name}: {result.err[-3000:]}"
    return outputs


@pytest.fixture(scope="module")
def one_rank(
    root: Path, model: Path, data: Path, whole: dict[str, Path]
) -> tuple[dict[str, Result], dict[str, Path]]:
    """What happens to copies of the uninterrupted runs when they are started again."""
    outputs = {
        name: copy_run(whole[kind], root / name, up_to=up_to)
        for name, kind, up_to in (
            ("damaged", "plain", STEPS),
            ("distributed_resumed", "distributed", 20),
            ("other_data", "plain", 10),
            ("other_objective", "plain", 10),
            ("other_model", "plain", 10),
            ("complete", "plain", STEPS),
        )
    }
    flip_byte(next((checkpoint(outputs["damaged"], 30) / "dist").glob("*.distcp")))
    (checkpoint(outputs["damaged"], 20) / "manifest.json").unlink()
    (outputs["damaged"] / "checkpoints" / ".step_00000040.tmp" / "dist").mkdir(parents=True)
    other_data = write_jsonl(root / "other.jsonl", pairs(16, seed=3))
    other_model = save_model(root / "other-model", seed=8)
    # A fresh reference each: the caches' own refusal is tested elsewhere.
    fresh = {name: f"reference_cache_dir={root / 'fresh' / name}" for name in outputs}
    done = several(
        root / "logs",
        {
            "damaged": ["train", *run(model, data, outputs["damaged"], "export_hf=true")],
            "distributed_resumed": [
                "train",
                *run(model, data, outputs["distributed_resumed"], *DISTRIBUTED, CONVERTED),
            ],
            "other_data": [
                "train",
                *run(model, other_data, outputs["other_data"], fresh["other_data"]),
            ],
            "other_objective": [
                "train",
                *run(model, data, outputs["other_objective"], "objective.gamma=0.06"),
            ],
            "other_model": [
                "train",
                *run(other_model, data, outputs["other_model"], fresh["other_model"]),
            ],
            "complete": ["train", *run(model, data, outputs["complete"])],
        },
    )
    return done, outputs


Resumed = tuple[dict[str, Result], dict[str, Path]]


def test_resume_names_and_skips_damaged_checkpoints(
    one_rank: Resumed, whole: dict[str, Path]
) -> None:
    result, output = one_rank[0]["damaged"], one_rank[1]["damaged"]
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    (flipped,) = [line for line in lines if "step_00000030 skipped" in line]
    assert ".distcp is damaged" in flipped
    (unfinished,) = [line for line in lines if "step_00000020 skipped" in line]
    assert "manifest.json" in unfinished
    assert any("resumed step_00000010: 10 of 30 steps" in line for line in lines)
    assert_same_run(output, whole["plain"])
    exported = [load_file(o / "hf" / "model.safetensors") for o in (output, whole["plain"])]
    for name in exported[0]:
        assert torch.equal(exported[0][name], exported[1][name]), name


def test_distributed_optimizer_resumes_to_the_bit(
    one_rank: Resumed, whole: dict[str, Path]
) -> None:
    result, output = one_rank[0]["distributed_resumed"], one_rank[1]["distributed_resumed"]
    assert result.status == 0, result.err
    assert "resumed step_00000020" in result.out
    # Begun from the Hugging Face directory itself, resumed from its conversion.
    assert "converted model: made" in result.out
    assert_same_run(output, whole["distributed"])


def test_distributed_optimizer_trains_as_the_plain_one(whole: dict[str, Path]) -> None:
    both = [without_timing(metrics(whole[kind])) for kind in ("plain", "distributed")]
    for plain, distributed in zip(*both, strict=True):
        assert plain == pytest.approx(distributed, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other_data", "fingerprint"),
        ("other_objective", "objective"),
        ("other_model", "weights"),
    ],
)
def test_another_run_in_the_same_directory_is_refused(
    one_rank: Resumed, name: str, said: str
) -> None:
    result = one_rank[0][name]
    assert result.status == 2, result.err
    (line,) = result.complaints
    assert said in line
    assert "resume" in line
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", ["other_objective", "other_model"])
def test_a_refused_start_leaves_the_record_alone(
    one_rank: Resumed, whole: dict[str, Path], name: str
) -> None:
    before, after = whole["plain"], one_rank[1][name]
    for file in ("config.yaml", "metrics.jsonl", "data/train/manifest.json"):
        assert (after / file).read_bytes() == (before / file).read_bytes(), file


def test_a_complete_run_started_again_does_nothing(
    one_rank: Resumed, whole: dict[str, Path]
) -> None:
    result, output = one_rank[0]["complete"], one_rank[1]["complete"]
    assert result.status == 0, result.err
    assert "30 of 30 steps" in result.out
    assert metrics(output) == metrics(whole["plain"])


def stopped_at(
    model: Path, data: Path, output: Path, number: signal.Signals, *more: str
) -> tuple[Result, int]:
    """Stop the real command by a signal once it trains.

    Returns:
        (result, step of the only checkpoint, which the signal made it write).
    """
    arguments = run(model, data, output, *more, "trainer.save_interval=null")
    with started("train", *arguments) as process:
        wait_for_step(process, output, 1)
        process.send_signal(number)
        result = finish(process)
    assert result.status == 75, f"{result.status} {result.err}"
    latest = (output / "checkpoints" / "latest").read_text().strip()
    assert [p.name for p in (output / "checkpoints").glob("*step_*")] == [latest]
    step = int(latest.removeprefix("step_"))
    assert 2 <= step < STEPS
    assert [entry["step"] for entry in metrics(output)] == [*range(step)]
    return result, step


def test_sigterm_on_one_rank(root: Path, model: Path, data: Path, whole: dict[str, Path]) -> None:
    output = root / "stopped"
    _, step = stopped_at(model, data, output, signal.SIGTERM)
    with started("train", *run(model, data, output, "export_hf=true")) as process:
        second = finish(process)
    assert second.status == 0, second.err
    assert f"resumed step_{step:08d}: {step} of {STEPS} steps" in second.out
    assert_same_run(output, whole["plain"])
    exported = [load_file(o / "hf" / "model.safetensors") for o in (output, whole["plain"])]
    for name in exported[0]:
        assert torch.equal(exported[0][name], exported[1][name]), name


@pytest.mark.nightly
def test_sigusr1_on_two_pipeline_ranks(root: Path, model: Path, data: Path) -> None:
    output, uninterrupted = root / "pp2-stopped", root / "pp2"
    stopped_at(model, data, output, signal.SIGUSR1, *PP2, *DISTRIBUTED)
    done = several(
        root / "logs-pp2",
        {
            "resumed": ["train", *run(model, data, output, *PP2, *DISTRIBUTED)],
            "whole": ["train", *run(model, data, uninterrupted, *PP2, *DISTRIBUTED)],
        },
        ranks=2,
    )
    for result in done.values():
        assert result.status == 0, result.err
    assert_same_run(output, uninterrupted)


def assert_close_runs(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for one, other in zip(without_timing(left), without_timing(right), strict=True):
        # The padding of a row depends on the mesh; nothing else may.
        one.pop("train/padding_fraction"), other.pop("train/padding_fraction")
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_checkpoints_load_under_another_mesh(
    root: Path, model: Path, data: Path, whole: dict[str, Path]
) -> None:
    """10 steps on one rank, 10 under TP2 x PP2, 10 on one rank again, as 30 on one."""
    wide = copy_run(whole["plain"], root / "wide", up_to=10)
    with started("train", *run(model, data, wide, *TP2_PP2)) as process:
        result = finish(process)
    assert result.status == 0, result.err
    assert "resumed step_00000010" in result.out
    assert_close_runs(metrics(wide), metrics(whole["plain"]))
    narrow = copy_run(wide, root / "narrow", up_to=20)
    done = several(root / "logs-narrow", {"narrow": ["train", *run(model, data, narrow)]})
    assert done["narrow"].status == 0, done["narrow"].err
    assert "resumed step_00000020" in done["narrow"].out
    assert_close_runs(metrics(narrow), metrics(whole["plain"]))
    ends = [stored(checkpoint(output, STEPS)) for output in (narrow, whole["plain"])]
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-5)
