"""The complete program on a tiny model: two updates, vLLM, the metrics, the page; and resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.evaluation.results import read_results
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = [pytest.mark.slow, pytest.mark.parallel, pytest.mark.nightly]

ROOT = Path(__file__).parents[2]
DEADLINE = 600


def experiment(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.film_reviews.experiment", "--quick", "--seeds", "1"]
    command += ["--run-dir", str(directory / "run"), "--model", str(directory / "model")]
    command += ["--pairs", str(directory / "pairs"), *more]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("experiment")
    (directory / "pairs").mkdir()
    # vLLM wants heads of 32 at least.
    save_model(directory / "model", hidden_size=128, intermediate_size=64)
    write_jsonl(directory / "pairs" / "train.jsonl", pairs(8))
    write_jsonl(directory / "pairs" / "validation.jsonl", pairs(4, seed=9))
    prompts = [
        {"id": f"prompt-{n}", "prompt": [{"role": "user", "content": text}]}
        for n, text in enumerate(["good film", "bad film"])
    ]
    write_jsonl(directory / "pairs" / "prompts.jsonl", prompts)
    return directory


@pytest.fixture(scope="module")
def first(material: Path) -> subprocess.CompletedProcess[str]:
    return experiment(material, "--arms", "base", "gdpo-tb-k8")


def test_runs_to_the_end(material: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    run = material / "run"
    results = read_results(run)
    assert [r.name for r in results.runs] == ["base", "gdpo-tb-k8"]
    for r in results.runs:
        assert [p.sampling.temperature for p in r.points] == [0.7, 1.3]
        assert r.prompt_ids == ["prompt-0", "prompt-1", "unseen-0"]
    facts = results.runs[1].facts
    assert facts["objective"] == "gdpo" and facts["objective.rejected_log_reward"] == -8.0
    assert results.runs[0].model_hash != results.runs[1].model_hash
    # Two updates were made, by the log of the training itself.
    log = (run / "arms" / "gdpo-tb-k8" / "seed-1" / "train" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in log.splitlines()] == [0, 1]
    page = (run / "report.html").read_text()
    assert "What held and what did not" in page
    table = (run / "results" / "results.md").read_text()
    assert "| gdpo-tb-k8: training raised the reward | **" in table
    text = (run / "results" / "results.json").read_text()
    assert str(run) not in text and '"base-megatron"' in text
    plain: dict[str, Any] = json.loads(text)
    assert plain["verdicts"][0]["claim"] == "gdpo-tb-k8: training raised the reward"
    assert (run / "results" / "plots" / "quality_diversity.png").stat().st_size > 10_000
    # A model is half a gigabyte in earnest: what was measured is not kept.
    assert not (run / "arms" / "gdpo-tb-k8" / "seed-1" / "train" / "hf").exists()


def test_resumes_and_reruns_what_has_changed(
    material: Path, first: subprocess.CompletedProcess[str]
) -> None:
    job = material / "run" / "arms" / "gdpo-tb-k8" / "seed-1" / "job.json"
    before = job.stat().st_mtime_ns
    again = experiment(material, "--arms", "base", "gdpo-tb-k8")
    assert again.returncode == 0, again.stdout + again.stderr
    assert job.stat().st_mtime_ns == before
    assert "begun" not in again.stdout
    planned = experiment(material, "--plan", "--arms", "base", "gdpo-tb-k8", "dpo")
    assert when(planned) == {"base": "done", "dpo": "0m", "gdpo-tb-k8": "done"}
    # With another rate of learning what was trained does not count; the untouched model does.
    arguments = ["--plan", "--arms", "base", "gdpo-tb-k8", "--train", "optim.lr=1e-4"]
    assert when(experiment(material, *arguments)) == {"base": "done", "gdpo-tb-k8": "0m"}


def when(planned: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Arm -> when it begins, by a plan."""
    assert planned.returncode == 0, planned.stderr
    jobs = [line.split()[:2] for line in planned.stdout.splitlines() if "/seed-1" in line]
    return {name.removesuffix("/seed-1"): begins for name, begins in jobs}


def test_mistakes_are_one_line(material: Path) -> None:
    for arguments, message in (
        (["--arms", "base", "dpo-random"], "takes its number of labels from adpo"),
        (["--arms", "dpo"], "add base"),
        (["--hours", "0"], "must be positive"),
    ):
        done = experiment(material, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("experiment: error: ") and message in done.stderr
        assert len(done.stderr.splitlines()) == 1
