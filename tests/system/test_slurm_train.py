"""`slurm/gdpo_llama3_8b.sub` on a real Slurm, with a tiny model: all of it, and disturbed.

A disturbed run has to end with the weights, optimizer and metrics of one that was not, to the bit.
Each test prints how long its fault took (pytest -s).
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.checkpoints import stored
from tests.support.commands import metrics, started, without_timing
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.ranks import ROOT

from .interrupted_runs import count_rows
from .slurm_cluster import GRACE_SECONDS, SlurmCluster, slurm_cluster

pytestmark = pytest.mark.parallel

SCRIPT = ROOT / "slurm" / "gdpo_llama3_8b.sub"
SECONDS = 540.0
"""A job here takes one to two minutes, on two cores that are busy several times as much."""
STEPS, EVERY = 24, 6
PAIRS = 200
GIVEN_UP = 60.0
"""A killed rank may hold the others no longer than this."""


@dataclass(frozen=True)
class Files:
    """What a run starts from."""

    model: Path
    train: Path
    validation: Path

    def overrides(self, output: Path) -> list[str]:
        """The experiment cut down to a tiny model on CPUs; a step takes a third of a second."""
        return [
            f"model.restore_from_path={self.model}",
            f"data.train_path={self.train}",
            f"data.validation_path={self.validation}",
            f"output_dir={output}",
            "data=jsonl",
            "data.max_length=96",
            "data.max_prompt_length=48",
            "precision=fp32",
            "parallel=tp2",
            "model.global_batch_size=16",
            f"trainer.max_steps={STEPS}",
            "trainer.max_epochs=null",
            f"trainer.save_interval={EVERY}",
            "trainer.val_check_interval=8",
            "optim.lr=1e-3",
            "optim.sched.warmup_steps=2",
            "logger.tensorboard=false",
        ]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=3, cpus=4) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("files")
    return Files(
        save_model(root / "model", head_dim=32),  # the least that vLLM takes on a CPU
        write_jsonl(root / "train.jsonl", pairs(PAIRS)),
        write_jsonl(root / "validation.jsonl", pairs(8, seed=1)),
    )


@pytest.fixture(scope="module")
def whole(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without Slurm and without disturbance, on the same mesh."""
    output = tmp_path_factory.mktemp("whole") / "out"
    own = ["trainer.devices=2", "trainer.num_nodes=1", "export_hf=false"]
    with started("train", "experiment=gdpo_llama3_8b", *own, *files.overrides(output)) as process:
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said[-3000:]
    return output


@dataclass
class Job:
    """A job of the script on two of three nodes, one rank each."""

    slurm: SlurmCluster
    number: int
    output: Path
    directory: Path

    @property
    def log(self) -> str:
        path = self.directory / f"gdpo_llama3_8b-{self.number}.log"
        return path.read_text() if path.exists() else "the job has no log"

    @property
    def state(self) -> dict[str, str]:
        return self.slurm.job(self.number)

    def wait_until(self, what: Callable[[], bool]) -> float:
        """Wait, and return the time at which it came."""
        limit = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < limit, self.log
            assert self.state["JobState"] not in ("FAILED", "CANCELLED"), self.log
            time.sleep(0.05)
        return time.monotonic()

    def wait_for_step(self, step: int) -> None:
        """Until the line of `step` is in the log of metrics."""
        self.wait_until(lambda: self.steps() > step)

    def steps(self) -> int:
        """Updates that are logged."""
        path = self.output / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def newest(self) -> int:
        """Step of the newest checkpoint."""
        found = (self.output / "checkpoints").glob("step_*/manifest.json")
        return max((int(path.parent.name.removeprefix("step_")) for path in found), default=0)

    def restarted(self, times: int) -> None:
        """Wait until it runs for the so-and-so-manyth time again."""
        self.wait_until(
            lambda: (
                int(self.state["Restarts"]) == times
                and self.state["JobState"] == "RUNNING"
                and self.log.count("gdpo_llama3_8b on 2 nodes") == times + 1
            )
        )

    def pid(self, node: str) -> int:
        """Process of the rank on a node."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            mine = {f"SLURM_JOB_ID={self.number}".encode(), f"SLURMD_NODENAME={node}".encode()}
            if b"python" in command[0] and b"train" in command and mine <= {*environment}:
                return int(entry.name)
        raise AssertionError(f"no rank on {node}: {self.log}")

    def nodes(self) -> list[str]:
        """The two that it runs on."""
        shown = self.slurm.run("scontrol", "show", "hostnames", self.state["NodeList"])
        return shown.split()


@pytest.fixture
def submit(slurm: SlurmCluster, files: Files, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    def submitted(
        *overrides: str, flags: tuple[str, ...] = ("--ntasks-per-node=1",), **variables: str
    ) -> Job:
        given = {
            "NEMO_GDPO_HOME": str(ROOT),
            "NEMO_GDPO_INTERFACE": "lo",
            "NEMO_GDPO_CHAIN": "no",
            **variables,
        }
        exported = ",".join(f"{name}={value}" for name, value in given.items())
        output = tmp_path / "out"
        number = slurm.sbatch(
            "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", *flags,
            f"--chdir={tmp_path}", f"--export=ALL,{exported}",
            str(SCRIPT), *files.overrides(output), *overrides,
        )  # fmt: skip
        return Job(slurm, number, output, tmp_path)

    yield submitted
    slurm.run("scancel", "--user=root")
    slurm.wait_until_empty()


def assert_undisturbed(job: Job, whole: Path, *, restarts: int) -> None:
    """It completed, and nothing tells it from the run without disturbance."""
    ended = job.slurm.finish(job.number, SECONDS)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), job.log
    assert ended["Restarts"] == str(restarts), job.log
    assert without_timing(metrics(job.output)) == without_timing(metrics(whole))
    name = f"step_{STEPS:08d}"
    mine, theirs = (stored(path / "checkpoints" / name) for path in (job.output, whole))
    assert mine.keys() == theirs.keys()
    assert any("exp_avg" in tensor for tensor in mine)
    for tensor, value in mine.items():
        assert torch.equal(value, theirs[tensor]), tensor


def test_two_requeues_in_a_row(
    submit: Callable[..., Job], whole: Path, slurm: SlurmCluster
) -> None:
    """The time limit comes before the first step, and the loss of the nodes in the middle."""
    job = submit()
    # The reference is being computed. As five minutes before the end of its time.
    job.wait_until((job.output / "reference").exists)
    time.sleep(0.5)  # on every rank
    slurm.run("scancel", "--batch", "--signal=USR1", str(job.number))
    job.restarted(1)
    assert "ended with 75" in job.log

    job.wait_for_step(EVERY + 1)
    urgent = slurm.sbatch(
        "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    job.restarted(2)
    assert slurm.job(urgent)["JobState"] == "COMPLETED"
    assert_undisturbed(job, whole, restarts=2)
    assert len(re.findall(r"^resumed step_", job.log, re.MULTILINE)) == 1


def test_preemption_with_a_time_of_grace(
    submit: Callable[..., Job], whole: Path, slurm: SlurmCluster
) -> None:
    """TERM comes to the tasks only: they stop, and the job makes room before its grace is over."""
    job = submit(flags=("--ntasks-per-node=1", "--partition=patient"))
    job.wait_for_step(EVERY + 1)
    begun = time.monotonic()
    slurm.sbatch(
        "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    room = job.wait_until(lambda: job.state["JobState"] == "PENDING") - begun
    saved = job.newest()
    job.wait_until(lambda: f"resumed step_{saved:08d}" in job.log)
    assert room < GRACE_SECONDS
    print(f"preempted with grace: room after {room:.0f} s, resumed from step {saved}")
    assert_undisturbed(job, whole, restarts=1)


def test_a_killed_rank(submit: Callable[..., Job], whole: Path) -> None:
    job = submit()
    job.wait_for_step(EVERY + 1)
    saved = job.newest()
    assert saved == EVERY
    os.kill(job.pid(job.nodes()[1]), signal.SIGKILL)
    begun = time.monotonic()
    over = job.wait_until(lambda: "a rank failed (srun:" in job.log) - begun
    assert over < GIVEN_UP
    job.wait_until(lambda: "resumed step_" in job.log)
    again = time.monotonic() - begun
    print(f"killed rank: step over after {over:.0f} s, resumed after {again:.0f} s")
    assert re.search(r"srun: error: n\d: task 1: Killed", job.log)
    assert_undisturbed(job, whole, restarts=1)


def test_a_node_that_goes_down(
    submit: Callable[..., Job], whole: Path, slurm: SlurmCluster
) -> None:
    """Slurm itself puts the job into the queue, and it goes on with the third node."""
    job = submit()
    job.wait_for_step(EVERY + 1)
    lost = job.nodes()[1]
    begun = time.monotonic()
    slurm.run("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=test")
    try:
        job.restarted(1)
        assert lost not in job.nodes()
        job.wait_until(lambda: "resumed step_" in job.log)
        print(f"node down: resumed after {time.monotonic() - begun:.0f} s")
        assert_undisturbed(job, whole, restarts=1)
    finally:
        slurm.run("scontrol", "update", f"NodeName={lost}", "State=RESUME")


def test_the_whole_job(submit: Callable[..., Job], slurm: SlurmCluster) -> None:
    """Four ranks on two nodes; then export, sampling with vLLM, evaluation and the report."""
    job = submit(
        "model.global_batch_size=8",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        flags=("--ntasks-per-node=2",),
        NEMO_GDPO_CHAIN="yes",
        NEMO_GDPO_CHAIN_FLAGS="--gpus-per-node=0 --cpus-per-task=2 --mem=1G",
        NEMO_GDPO_SAMPLING="generation.num_samples=2 generation.max_tokens=8 generation.dtype=fp32",
        NEMO_GDPO_EVALUATION="evaluation.bootstrap.resamples=100",
    )
    ended = slurm.finish(job.number, SECONDS)
    assert ended["JobState"] == "COMPLETED", job.log
    assert "4 ranks (TP2 PP1 CP1 DP2)" in job.log
    following = slurm.jobs_since(job.number)
    logs = [job.directory / f"{slurm.job(n)['JobName']}-{n}.log" for n in following]
    for number, log in zip(following, logs, strict=True):
        told = slurm.finish(number, SECONDS)
        assert told["JobState"] == "COMPLETED", log.read_text() if log.exists() else told

    model = AutoModelForCausalLM.from_pretrained(job.output / "hf")
    assert model.config.vocab_size > 0
    prompts = (job.output / "prompts.jsonl").read_text().splitlines()
    assert len(prompts) == 8  # of the validation pairs
    for name in ("base", "gdpo"):
        assert count_rows(job.output / "samples" / name) == len(prompts)
    results = json.loads((job.output / "evaluation" / "evaluation.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["base", "gdpo"]
    measured = results["runs"][1]["points"][0]["metrics"]
    assert "kl_exact" in measured or any(name.startswith("kl") for name in measured)
    assert (job.output / "evaluation" / "report.html").stat().st_size > 10_000

    # All of it is there: nothing is trained or exported again.
    before = len(following)
    again = submit(
        "model.global_batch_size=8",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        flags=("--ntasks-per-node=2",),
    )
    assert slurm.finish(again.number, SECONDS)["JobState"] == "COMPLETED", again.log
    assert "trained already: " in again.log
    assert "MegatronGPT" not in again.log
    assert len(slurm.jobs_since(job.number)) == before + 1
