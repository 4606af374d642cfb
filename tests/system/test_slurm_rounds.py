"""`slurm/rounds_llama3_8b.sub` on a real Slurm: one node trains, the other samples meanwhile; a
signal in the middle, back into the queue; in the end it is what one machine makes, to the bit.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.commands import started
from tests.support.ranks import ROOT
from tests.support.tiny_rounds import overrides, prepare, stages_done

from .slurm_cluster import SlurmCluster, slurm_cluster

pytestmark = [pytest.mark.engine, pytest.mark.nightly]

SCRIPT = ROOT / "slurm" / "rounds_llama3_8b.sub"
SECONDS = 900.0
"""Twelve steps that start Python, three of them vLLM, on cores that are busy."""
ROUNDS = 3
VERBS = {"score": "rounds score", "data": "rounds groups"}
"""Stages whose verb has another name."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("rounds"))


def cut_down(root: Path, output: str) -> list[str]:
    """The experiment on one CPU a node."""
    return overrides(
        root,
        output,
        f"rounds.number={ROUNDS}",
        "rounds.prompts_per_round=null",
        "rounds.replay.cluster_share=1",
        "generation.backend=vllm",
        "generation.ray.replicas=1",
        "data.group_size=4",
        "precision=fp32",
        "parallel=single",
        "optim.sched.warmup_steps=1",
    )


def submit(slurm: SlurmCluster, log: Path, *command: str) -> int:
    """One rank on each of two nodes; returns the job's number."""
    return slurm.sbatch(
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=0",
        "--cpus-per-task=2",
        "--mem=4000",
        f"--output={log}",
        f"--export=ALL,NEMO_GDPO_HOME={ROOT}",
        str(SCRIPT),
        *command,
    )


@pytest.fixture(scope="module")
def alone(root: Path) -> Path:
    """The same on this machine, stage by stage."""
    own = ["experiment=rounds_gflownet_llama3_8b", "trainer.devices=1", "trainer.num_nodes=1"]
    with started("rounds", *own, *cut_down(root, "alone")) as process:
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said[-3000:]
    return root / "alone"


def test_the_job_samples_while_it_trains_and_resumes(
    slurm: SlurmCluster, root: Path, alone: Path, tmp_path: Path
) -> None:
    output, log = root / "job", tmp_path / "log"
    job = submit(slurm, log, *cut_down(root, "job"))
    limit = time.monotonic() + SECONDS
    while "round_001/train" not in stages_done(output):
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.05)
    # As `#SBATCH --signal=B:USR1@300` does five minutes before the end.
    slurm.run("scancel", "--batch", "--signal=USR1", str(job))
    while not (slurm.job(job)["Restarts"] == "1" and slurm.job(job)["JobState"] == "PENDING"):
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.1)
    between = stages_done(output)
    assert "round_003/train" not in between
    # Slurm makes a job that was requeued wait, and its node refuses it in the second after.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    ended = slurm.finish(job, SECONDS)

    said = log.read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), said
    assert "rounds on 2 nodes (n[1-2]), 1 ranks each; 1 train, n2 samples" in said
    assert "ended with 75" in said and "restart 1: 0 of at most" in said
    # Round 2 was sampled from the first model while round 1 trained, or even before.
    begun = re.findall(r": (train|generate|rounds \w+|pairs) (?:--config )?\S*/(round_\d+)/", said)
    assert begun.index(("generate", "round_002")) < begun.index(("generate", "round_003"))
    assert begun.index(("generate", "round_002")) <= begun.index(("train", "round_001")) + 1
    # What was done before the signal is not done again.
    for stage in between:
        place, kind = stage.split("/")
        assert begun.count((VERBS.get(kind, kind), place)) == 1
    assert len(stages_done(output)) == 4 * ROUNDS

    for number in range(1, ROUNDS + 1):
        place = f"round_{number:03d}"
        for name in ("scored/answers.jsonl", "data/groups.jsonl"):
            assert (output / place / name).read_bytes() == (alone / place / name).read_bytes()
        weights, expected = (
            load_file(one / place / "train" / "hf" / "model.safetensors") for one in (output, alone)
        )
        assert all(weights[name].equal(value) for name, value in expected.items())
    lines = [json.loads(line) for line in (output / "rounds.jsonl").read_text().splitlines()]
    assert [line["staleness_max"] for line in lines] == [0, 1, 2]
    assert (output / "report.html").is_file()


def test_the_job_fails_with_the_reason_of_the_run(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    none = ("model.restore_from_path=/none", f"output_dir={tmp_path / 'out'}")
    job = submit(slurm, log, *none)
    ended = slurm.finish(job, SECONDS)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), log.read_text()
    assert ended["Restarts"] == "0"
    assert "error: " in log.read_text()
