"""`slurm/gdpo_llama3_8b.sub` on a real Slurm, with a tiny model: all of it, and disturbed.

A disturbed run has to end with the weights, optimizer and metrics of one that was not, to the bit.
With `pytest -s` each test prints how long its fault took; docs/operator.md has such a table.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
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
PAIRS = 3000
"""Their rows are more than one shard of the reference holds; the first shows that it has begun."""
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
        looked = 0.0
        while not what():
            now = time.monotonic()
            assert now < limit, self.log
            if now - looked > 1:
                looked = now
                assert self.state["JobState"] not in ("FAILED", "CANCELLED"), self.log
            time.sleep(0.02)
        return time.monotonic()

    def wait_for_reference(self) -> None:
        """Until a part of the reference has been computed, and written."""
        self.wait_until(lambda: any((self.output / "reference").glob(".train.*/shard-*")))

    def wait_for_step(self, step: int) -> None:
        """Until the line of `step` is in the log of metrics."""
        self.wait_until(lambda: self.steps() > step)

    def steps(self) -> int:
        """Updates that are logged."""
        path = self.output / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def saved(self) -> list[int]:
        """Steps of the checkpoints that are complete, rising."""
        found = (self.output / "checkpoints").glob("step_*/manifest.json")
        return sorted(int(path.parent.name.removeprefix("step_")) for path in found)

    def resumed(self) -> list[int]:
        """Steps that its starts have resumed from."""
        return [int(step) for step in re.findall(r"^resumed step_(\d+)", self.log, re.MULTILINE)]

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """Inside the block a rank stands still, and the other waits for it.

        So what Slurm has to arrange first comes in the middle of the work, however fast that is.
        """
        rank = self.pid(self.nodes()[1])
        os.kill(rank, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGCONT)

    def is_preempted(self) -> bool:
        """Whether Slurm has begun to take its nodes; with a time of grace it still runs then."""
        state = self.state
        return state["JobState"] != "RUNNING" or state.get("PreemptTime", "None") != "None"

    def preempt(self) -> int:
        """Have a job with a higher priority want all nodes; returns its number."""
        with self.halted():
            urgent = self.slurm.sbatch(
                "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=:"
            )
            self.wait_until(self.is_preempted)
        return urgent

    def signal_limit(self) -> None:
        """What Slurm does five minutes before the end of the job's time."""
        with self.halted():
            self.slurm.run("scancel", "--batch", "--signal=USR1", str(self.number))
            self.wait_until(lambda: "USR1: time is almost up" in self.log)

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


def tell(fault: str, begun: float, **times: float) -> None:
    """Print seconds since the fault for the table."""
    cells = (f"{what.replace('_', ' ')} after {at - begun:.0f} s" for what, at in times.items())
    print(f"\n{fault}: {', '.join(cells)}")


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


def assert_reference_went_on(job: Job) -> None:
    """What was scored before the reference was stopped was not scored again."""
    (line,) = re.findall(r"reference train: continuing, (\d+) of (\d+) pairs", job.log)
    before, pairs = map(int, line)
    assert 0 < before < pairs


def test_preemption_in_the_reference_and_again_in_training(
    submit: Callable[..., Job], whole: Path, slurm: SlurmCluster
) -> None:
    """Two requeues in a row, by Slurm itself: it takes the nodes at once."""
    job = submit()
    job.wait_for_reference()
    begun = time.monotonic()
    urgent = job.preempt()
    over = job.wait_until(lambda: job.state["JobState"] == "PENDING")
    assert not job.steps()
    job.restarted(1)
    job.wait_for_step(0)
    tell("preempted in the reference", begun, nodes_free=over, first_step=time.monotonic())
    assert slurm.job(urgent)["JobState"] == "COMPLETED"

    job.wait_for_step(EVERY + 1)
    begun = time.monotonic()
    job.preempt()
    over = job.wait_until(lambda: job.state["JobState"] == "PENDING")
    again = job.wait_until(lambda: bool(job.resumed()))
    tell("preempted in training", begun, nodes_free=over, resumed=again)
    assert_undisturbed(job, whole, restarts=2)
    assert len(job.resumed()) == 1
    assert_reference_went_on(job)


@pytest.mark.nightly
def test_the_limit_in_the_reference_and_preemption_with_a_time_of_grace(
    submit: Callable[..., Job], whole: Path
) -> None:
    """The job stops by itself both times, and puts itself into the queue."""
    job = submit(flags=("--ntasks-per-node=1", "--partition=patient"))
    job.wait_for_reference()
    begun = time.monotonic()
    job.signal_limit()
    over = job.wait_until(lambda: job.log.count("ended with 75") == 1)
    assert not job.steps()
    job.restarted(1)
    job.wait_for_step(0)
    tell("limit in the reference", begun, step_over=over, first_step=time.monotonic())

    job.wait_for_step(EVERY + 1)
    begun = time.monotonic()
    job.preempt()
    # TERM came to the tasks only.
    over = job.wait_until(lambda: job.log.count("ended with 75") == 2)
    assert over - begun < GRACE_SECONDS
    again = job.wait_until(lambda: bool(job.resumed()))
    tell("preempted with grace", begun, step_over=over, resumed=again)
    assert_undisturbed(job, whole, restarts=2)
    assert_reference_went_on(job)
    (resumed,) = job.resumed()
    assert resumed > EVERY  # from where it stopped, not from the interval's checkpoint


def test_a_killed_rank(submit: Callable[..., Job], whole: Path) -> None:
    job = submit()
    job.wait_for_step(EVERY + 1)
    begun = time.monotonic()
    os.kill(job.pid(job.nodes()[1]), signal.SIGKILL)
    over = job.wait_until(lambda: "a rank failed (srun:" in job.log)
    assert over - begun < GIVEN_UP
    again = job.wait_until(lambda: bool(job.resumed()))
    tell("killed rank", begun, step_over=over, resumed=again)
    assert re.search(r"srun: error: n\d: task 1: Killed", job.log)
    assert_undisturbed(job, whole, restarts=1)


def test_a_node_that_goes_down_and_a_newest_checkpoint_that_is_damaged(
    submit: Callable[..., Job], whole: Path, slurm: SlurmCluster
) -> None:
    """Slurm itself puts the job into the queue; it goes on with the third node, one save back."""
    job = submit()
    job.wait_for_step(2 * EVERY + 1)
    lost = job.nodes()[1]
    begun = time.monotonic()
    slurm.run("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=test")
    # Its daemon is alive, so it would come back by itself.
    slurm.run("scontrol", "update", f"NodeName={lost}", "State=DRAIN", "Reason=test")
    try:
        over = job.wait_until(lambda: job.state["JobState"] == "PENDING")
        before, newest = job.saved()[-2:]
        damage(job.output / "checkpoints" / f"step_{newest:08d}")
        job.restarted(1)
        assert lost not in job.nodes()
        again = job.wait_until(lambda: bool(job.resumed()))
        tell("node down, newest checkpoint damaged", begun, step_over=over, resumed=again)
        assert f"checkpoint step_{newest:08d} skipped: " in job.log
        assert job.resumed() == [before]
        assert_undisturbed(job, whole, restarts=1)
    finally:
        slurm.run("scontrol", "update", f"NodeName={lost}", "State=RESUME")


def damage(checkpoint: Path) -> None:
    """Change a byte of its largest file, which keeps its size."""
    path = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture
def small_disk(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """`out/checkpoints` on a file system with room for one and a half."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    newest = whole / "checkpoints" / f"step_{STEPS:08d}"
    used = sum(path.stat().st_blocks * 512 for path in newest.rglob("*"))
    place = tmp_path / "out" / "checkpoints"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={used + used // 2}", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs more rights than the tests have ({done.stderr.strip()})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.nightly
def test_a_full_disk(small_disk: Path, submit: Callable[..., Job], whole: Path) -> None:
    """The second checkpoint does not fit; when there is room, the job goes on from the first."""
    job = submit()
    job.wait_until(lambda: "previous checkpoint is untouched" in job.log)
    begun = time.monotonic()
    over = job.wait_until(lambda: "goes back into the queue" in job.log)
    assert job.saved() == [EVERY]
    subprocess.run(["mount", "-o", "remount,size=1g", str(small_disk)], check=True)
    again = job.wait_until(lambda: bool(job.resumed()))
    tell("full disk, and room before the next start", begun, step_over=over, resumed=again)
    assert job.resumed() == [EVERY]
    assert_undisturbed(job, whole, restarts=1)


@pytest.mark.nightly
def test_a_second_job_in_the_same_directory(submit: Callable[..., Job], whole: Path) -> None:
    """It is refused at once and not queued again, and the first one is not disturbed."""
    first = submit()
    first.wait_for_step(1)
    with first.halted():
        second = submit()
        ended = second.slurm.finish(second.number, SECONDS)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert f"another run is writing into {first.output}" in second.log
    assert_undisturbed(first, whole, restarts=0)


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
