"""The complete program on a tiny writer: models, pairs, arms, the page; a stop, and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_gdpo.errors import EXIT_REQUEUE

pytestmark = [pytest.mark.slow, pytest.mark.parallel, pytest.mark.nightly]

ROOT = Path(__file__).parents[3]
DEADLINE = 900


def program(run_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.film_reviews.evidence", "--profile", "quick"]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiment") / "run"


def test_a_stop_while_the_writer_is_made(tmp_path: Path) -> None:
    """At once, and nothing that is not whole is left."""
    running = program(tmp_path / "run")
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("writer: "):
            break
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=30)
    assert running.returncode == EXIT_REQUEUE
    assert err == "experiment: stopped by a signal; the same command goes on\n"
    assert not (tmp_path / "run" / "model").exists()


def test_a_stop_keeps_what_is_done(run_dir: Path) -> None:
    running = program(run_dir)
    record = run_dir / "records" / "base--seed-1.json"
    deadline = time.monotonic() + DEADLINE
    while not record.is_file() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert record.is_file(), running.communicate(timeout=10)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=DEADLINE)
    assert running.returncode == EXIT_REQUEUE, out + err
    assert "stopped by a signal; the same command goes on" in err
    assert not (run_dir / "evidence.md").exists()


def test_the_same_command_goes_on_to_the_page(run_dir: Path) -> None:
    record = run_dir / "records" / "base--seed-1.json"
    before = record.stat().st_mtime_ns
    running = program(run_dir)
    out, err = running.communicate(timeout=DEADLINE)
    assert running.returncode == 0, out + err
    assert record.stat().st_mtime_ns == before
    names = sorted(path.name for path in (run_dir / "records").iterdir())
    assert names == [
        "base--seed-1.json", "dpo-b0.1--seed-1.json", "gdpo-tb-k5--seed-1.json",
    ]  # fmt: skip
    text = (run_dir / "evidence.md").read_text()
    assert "computed from 3 runs of 3 arms, over 4 prompts" in text
    assert (run_dir / "images" / "evidence.png").stat().st_size > 10_000
    assert json.loads((run_dir / "results.json").read_text())["schema"] == 1


def test_a_record_has_every_metric_at_every_point(run_dir: Path) -> None:
    record = json.loads((run_dir / "records" / "gdpo-tb-k5--seed-1.json").read_text())
    assert [(p["update"], p["temperature"]) for p in record["points"]] == [(2, 1.0), (4, 1.0)]
    for point in record["points"]:
        assert set(point["metrics"]) == {
            "reward", "semantic_diversity", "distinct_1", "distinct_2", "self_bleu", "vendi",
            "log_det", "length_words", "valid", "perplexity", "kl", "coverage",
            "matched_semantic_diversity", "matched_distinct_2",
        }  # fmt: skip
        assert all(len(row) == 4 for row in point["metrics"].values())
    assert all(value > 0 for value in record["points"][-1]["metrics"]["kl"])
    # Models are removed once they are measured.
    job = run_dir / "jobs" / "gdpo-tb-k5--seed-1"
    assert not list(job.glob("hf-*")) and not (job / "train" / "checkpoints").exists()


def test_the_page_alone_is_the_same_again(run_dir: Path) -> None:
    before = (
        (run_dir / "evidence.md").read_bytes(),
        (run_dir / "images" / "evidence.png").read_bytes(),
    )
    running = program(run_dir, "--page-only")
    out, err = running.communicate(timeout=DEADLINE)
    assert running.returncode == 0, out + err
    assert (run_dir / "evidence.md").read_bytes() == before[0]
    assert (run_dir / "images" / "evidence.png").read_bytes() == before[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hours", "0"], "--hours, --seeds and --workers: must be positive"),
        (["--workers", "0"], "--hours, --seeds and --workers: must be positive"),
        (["--page-only"], "holds no record of these arms with the present settings"),
        (["--arms", "dpo-b0.1"], "--arms: add base, which everything is compared with"),
        (["--arms", "base", "random-g0.3"], "takes its number of labels from adpo-g0.3; add that"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    running = program(tmp_path / "run", *words)
    _, err = running.communicate(timeout=DEADLINE)
    assert running.returncode == 2
    assert err.count("\n") == 1 and said in err
    assert not (tmp_path / "run").exists()
