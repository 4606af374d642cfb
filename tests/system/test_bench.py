"""`make bench` in small: TRL's own DPOTrainer and this project's train the same, side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from math import log
from pathlib import Path
from typing import Any

import pytest

from benchmarks.heads.arms import ARMS as ARMS_OF_HEADS
from tests.support.ranks import ROOT, clean_environment
from tools.environments.recipes import ENVIRONMENTS, read_lock

LOCK = "bench.lock"
ARMS = ("TRL, live", "ours, padded", "ours, packed, prompts shared")


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TRL and Liger as locked, beside the environment: all that they need is in training's."""
    assert ENVIRONMENTS["bench"].locks == (*ENVIRONMENTS["training"].locks, LOCK)
    place = tmp_path_factory.mktemp("trl") / "site-packages"
    command = [sys.executable, "-m", "pip", "install", "-qqq", "--no-deps", "--target", str(place)]
    subprocess.run([*command, *read_lock(LOCK)], check=True)
    return place


def bench(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.peers", "--workload", "quick", "--rounds", "1"]
    return subprocess.run(
        [*command, "--folder", str(folder), *more],
        env=clean_environment(), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.nightly
def test_both_train_the_same(tmp_path: Path, trl: Path) -> None:
    done = bench(tmp_path, "--trl-path", str(trl), "--arms", *ARMS)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == list(ARMS)
    (found,) = json.loads((tmp_path / "results.json").read_text())["rounds"]
    steps: dict[str, list[dict[str, Any]]] = {arm: found[arm]["steps"] for arm in ARMS}
    theirs = steps[ARMS[0]]
    assert found[ARMS[0]]["versions"]["trl"] == read_lock(LOCK)[0].partition("==")[2]
    # Tiny products: far above the floor that the rate of larger ones gives, never below it.
    assert all(found[arm]["floor"]["flops"] > 0 for arm in ARMS[1:])
    heads, *_, last = (row.split("|") for row in rows)
    assert float(last[[head.strip() for head in heads].index("times the floor")]) > 1
    # Policy and reference are equal at first, and then differ by much more than the arms do.
    assert theirs[0]["loss"] == pytest.approx(log(2), abs=1e-6)
    assert all(abs(step["loss"] - log(2)) > 1e-3 for step in theirs[1:])
    for arm in ARMS[1:]:
        for own, other in zip(steps[arm], theirs, strict=True):
            assert own["tokens"] == other["tokens"]
            assert own["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert own["logps/chosen"] == pytest.approx(other["logps/chosen"], abs=1e-3)


@pytest.mark.nightly
def test_all_heads_have_the_same_values(tmp_path: Path, trl: Path) -> None:
    """`make bench BENCH=heads` in small; it fails by itself where a value differs."""
    environ = clean_environment() | {"PYTHONPATH": f"{trl}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.heads", "--quick", "--folder", str(tmp_path)],
        env=environ, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[1:]] == 2 * list(ARMS_OF_HEADS)


@pytest.mark.nightly
def test_another_mix_and_vocabulary(tmp_path: Path) -> None:
    """Without TRL: the model and the pairs are those that were asked for."""
    arms = ("--arms", "ours, packed, live")
    done = bench(tmp_path, "--mix", "summaries", "--vocabulary", "700", *arms)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "quick-summaries-700: " in done.stdout
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["lengths"]["prompt"], settings["model"]["vocab_size"]) == (380, 700)


@pytest.mark.nightly
def test_an_arm_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    # This Python has no TRL, and the setting is none of ours.
    done = bench(tmp_path, "--arms", *ARMS[:2], "--set", "model.no_such_key=1")
    assert done.returncode == 1
    assert "bench: TRL, live: failed in 1 of 1 rounds: status 1, ModuleNotFoundError" in done.stderr
    assert "bench: ours, padded: failed in 1 of 1 rounds" in done.stderr
    assert "no_such_key" in done.stderr


def test_a_workload_for_a_gpu_is_refused_without_one(tmp_path: Path) -> None:
    done = bench(tmp_path / "none", "--workload", "gpu")
    assert done.returncode == 2
    assert "choose --workload cpu" in done.stderr
    assert not (tmp_path / "none").exists()
