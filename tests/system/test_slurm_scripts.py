"""The `slurm/*.sub` files on a real Slurm of eight nodes with eight GPUs each, which only look so.

What the jobs run is a stand-in, so that this is about the jobs: what they ask for, how they end,
when they go back into the queue, and which jobs follow them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.platform.cuda import device_index
from tests.support.printed import all_blocks
from tests.support.ranks import ROOT

from .slurm_cluster import SlurmCluster, slurm_cluster

pytestmark = pytest.mark.parallel

SCRIPTS = sorted(path.name for path in (ROOT / "slurm").glob("*.sub"))
TRAINING = [name for name in SCRIPTS if "_" in name and not name.startswith("rounds_")]
SECONDS = 150.0
"""A job here takes some; the machine may be busy."""
NODES, GPUS = 8, 8
PRINTED = {name: block for name, block in all_blocks().items() if "sbatch " in block}
"""Blocks of README.md and docs/operator.md that submit something."""
SECRET = "0123456789abcdef"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    directory = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(directory, nodes=NODES, cpus=128, gpus=GPUS, memory=1_000_000) as cluster:
        yield cluster


@dataclass(frozen=True)
class Place:
    """The directory of a job, and what the stand-in noted there."""

    slurm: SlurmCluster
    path: Path

    def submit(
        self, act: str, script: str, *arguments: str, flags: tuple[str, ...] = (), **variables: str
    ) -> int:
        """Submit a script whose ranks do what `act` says."""
        (self.path / "act").write_text(act)
        given = {
            "NEMO_GDPO_HOME": str(ROOT),
            "NEMO_GDPO_STAND_IN": str(self.path),
            "NEMO_GDPO_TRAINING_PYTHON": str(self.path / "python"),
            "NEMO_GDPO_GENERATION_PYTHON": str(self.path / "python"),
            "NEMO_GDPO_CHAIN": "no",
            "WANDB_API_KEY": SECRET,
            **variables,
        }
        exported = ",".join(f"{name}={value}" for name, value in given.items())
        return self.slurm.sbatch(
            f"--chdir={self.path}", f"--export=ALL,{exported}", *flags,
            str(ROOT / "slurm" / script), *arguments,
        )  # fmt: skip

    def calls(self, part: str) -> list[dict[str, Any]]:
        """Calls of the stand-in with `part` in their arguments."""
        path = self.path / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [call for call in found if part in " ".join(call["arguments"])]

    def log(self) -> str:
        """All logs of the directory."""
        return "".join(path.read_text() for path in sorted(self.path.glob("*.log")))

    def finish(self, job: int) -> dict[str, str]:
        """Wait until a job has ended for good; returns what `scontrol` tells of it."""
        return self.slurm.finish(job, SECONDS)

    def wait_until(self, what: Callable[[], bool]) -> None:
        limit = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < limit, self.log()
            time.sleep(0.05)


@pytest.fixture
def place(slurm: SlurmCluster, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "base").mkdir()
    (tmp_path / "prompts.jsonl").touch()
    program = tmp_path / "python"
    # Under the name and with the variables that a job's Python has.
    program.write_text(
        f'#!/bin/bash\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.system.stand_in "$@"\n'
    )
    program.chmod(0o755)
    yield Place(slurm, tmp_path)
    slurm.run("scancel", "--user=root")
    slurm.wait_until_empty()


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_cluster_takes_it_at_its_real_size(slurm: SlurmCluster, script: str) -> None:
    """`sbatch --test-only` ends with an error when no node can ever do what is asked for."""
    told = slurm.told("sbatch", "--test-only", str(ROOT / "slurm" / script))
    assert told.returncode == 0, told.stderr
    assert "to start at" in told.stderr


def test_a_cluster_that_is_too_small_does_not(slurm: SlurmCluster) -> None:
    script = str(ROOT / "slurm" / "gdpo_llama3_70b.sub")
    for flags in (("--nodes=9",), ("--gpus-per-node=9",)):
        assert slurm.told("sbatch", "--test-only", *flags, script).returncode != 0, flags


@pytest.mark.parametrize("name", PRINTED)
def test_the_cluster_takes_what_the_pages_print(
    slurm: SlurmCluster, tmp_path: Path, name: str
) -> None:
    program = tmp_path / "sbatch"
    program.write_text(f'#!/bin/bash\nexec {shutil.which("sbatch")} --test-only "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", PRINTED[name]],
        env=slurm.environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("to start at") == PRINTED[name].count("sbatch ")


@pytest.mark.parametrize("script", TRAINING)
def test_a_script_asks_for_what_its_experiment_was_made_for(
    slurm: SlurmCluster, script: str
) -> None:
    name = script.removesuffix(".sub")
    trainer = TRAIN.parse(compose([f"experiment={name}"], TRAIN).plain).trainer
    job = slurm.sbatch("--hold", "--output=/dev/null", str(ROOT / "slurm" / script))
    asked = slurm.job(job)
    slurm.run("scancel", str(job))
    assert asked["NumNodes"].partition("-")[0] == str(trainer.num_nodes)
    assert asked["NumTasks"] == str(trainer.num_nodes * (trainer.devices or 0))
    assert asked["TresPerNode"] == f"gres:gpu:{trainer.devices}"
    assert asked["JobName"] == name
    assert asked["Requeue"] == "1"


def test_every_experiment_on_a_cluster_has_a_script() -> None:
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("*_*b.yaml")}
    trained = {name for name in experiments if not name.startswith(("_", "rounds_"))}
    assert {f"{name}.sub" for name in trained} == set(TRAINING)


# --- one job ------------------------------------------------------------------------------------

SMALL = ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=2", "--cpus-per-task=1")
"""Two nodes of two GPUs: fewer than the script's tasks."""


def test_ranks_and_nodes_are_those_that_the_job_was_given(place: Place) -> None:
    timed = (*SMALL, "--time=10")
    job = place.submit("done", "gdpo_llama3_8b.sub", "optim.lr=1e-6", "seed=7", flags=timed)
    ended = place.finish(job)
    assert ended["JobState"] == "COMPLETED", place.log()
    ranks = place.calls("-m nemo_gdpo train")
    started = time.mktime(time.strptime(ended["StartTime"], "%Y-%m-%dT%H:%M:%S"))
    assert {call["NEMO_GDPO_END_TIME"] for call in ranks} == {str(int(started) + 10 * 60)}
    assert sorted(call["rank"] for call in ranks) == [0, 1, 2, 3]
    assert sorted((call["SLURMD_NODENAME"], call["SLURM_LOCALID"]) for call in ranks) == [
        ("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1"),
    ]  # fmt: skip
    own = ["trainer.devices=2", "trainer.num_nodes=2", "export_hf=false"]
    for verb in ("train", "validate", "plan", "finish"):
        found = place.calls(f"{verb} experiment=gdpo_llama3_8b")
        assert found, verb
        for call in found:
            assert call["arguments"][-6:] == [
                "experiment=gdpo_llama3_8b", *own, "optim.lr=1e-6", "seed=7",
            ], verb  # fmt: skip
    # The checks, on one node and before anything else.
    order = [call["arguments"][2:3] for call in place.calls("")][:2]
    assert order == [["doctor"], ["validate"]]
    assert len(place.calls("doctor")) == 1


def test_a_key_reaches_the_ranks_and_nothing_that_is_written(place: Place) -> None:
    job = place.submit("done", "dpo_llama3_8b.sub", flags=SMALL)
    place.finish(job)
    ranks = place.calls("-m nemo_gdpo train")
    assert ranks
    assert all(call["has_key"] for call in ranks)
    written = [path for path in place.path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in written)
    for path in written:
        assert SECRET not in path.read_text(), path


def test_a_rank_takes_the_only_gpu_that_its_task_is_shown(place: Place) -> None:
    """What `srun --gpus-per-task=1` and sites that bind GPUs do; two tasks never get the same."""
    bound = {"NEMO_GDPO_SRUN_FLAGS": "--gpus-per-task=1"}
    place.finish(place.submit("done", "gdpo_llama3_8b.sub", flags=SMALL, **bound))
    seen = {}
    for call in place.calls("-m nemo_gdpo train"):
        (gpu,) = str(call["CUDA_VISIBLE_DEVICES"]).split(",")
        seen[call["SLURMD_NODENAME"], gpu] = call["rank"]
        assert device_index(int(call["SLURM_LOCALID"]), 1, {}) == 0
    assert len(seen) == 4, place.log()


def test_without_binding_a_task_is_shown_all_gpus_of_its_node(place: Place) -> None:
    place.finish(place.submit("done", "gdpo_llama3_8b.sub", flags=SMALL))
    for call in place.calls("-m nemo_gdpo train"):
        shown = str(call["CUDA_VISIBLE_DEVICES"]).split(",")
        assert len(shown) == 2
        local = int(call["SLURM_LOCALID"])
        assert device_index(local, len(shown), {}) == local


# --- how it ends --------------------------------------------------------------------------------


def test_ranks_that_were_stopped_end_in_their_own_time_and_the_job_resumes(place: Place) -> None:
    """With 75 for srun, the first rank to end would have the others killed."""
    job = place.submit("stop", "gdpo_llama3_8b.sub", flags=SMALL)
    ended = place.finish(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), place.log()
    assert "ended with 75" in place.log()
    assert "srun: error" not in place.log()


def test_preemption_with_a_time_of_grace_during_the_checks(place: Place) -> None:
    """TERM comes to the step only: to the script it looks as if the checks had failed."""
    job = place.submit("check slowly", "gdpo_llama3_8b.sub", flags=(*SMALL, "--partition=patient"))
    place.wait_until(lambda: bool(place.calls("doctor")))
    place.slurm.sbatch(
        "--partition=urgent", f"--nodes={NODES}", "--exclusive", "--output=/dev/null", "--wrap=:"
    )
    ended = place.finish(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), place.log()
    assert len(place.calls("doctor")) == 2


def test_a_mistake_of_one_rank_ends_the_job_and_is_not_tried_again(place: Place) -> None:
    """The others are killed, so srun's own status is not that of the mistake."""
    begun = time.monotonic()
    job = place.submit("mistake", "gdpo_llama3_8b.sub", flags=SMALL)
    ended = place.finish(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), place.log()
    assert ended["Restarts"] == "0"
    assert time.monotonic() - begun < 60


def test_a_killed_rank_takes_the_others_along_and_the_job_is_tried_again(place: Place) -> None:
    """Its neighbours would wait for 100 seconds. Twice in a row nothing new, and it is over."""
    begun = time.monotonic()
    job = place.submit("crash", "gdpo_llama3_8b.sub", flags=SMALL, NEMO_GDPO_MAX_RESTARTS="1")
    ended = place.finish(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "1"), place.log()
    assert time.monotonic() - begun < 90
    log = place.log()
    assert "task 1: Killed" in log
    assert "stopped after 1 restarts in a row that brought nothing new" in log
    assert not list(place.path.glob(".nemo-gdpo-*"))


def test_restarts_that_get_further_are_not_limited(place: Place) -> None:
    job = place.submit(
        "crash thrice", "gdpo_llama3_8b.sub", flags=SMALL, NEMO_GDPO_MAX_RESTARTS="0"
    )
    ended = place.finish(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), place.log()


# --- containers ---------------------------------------------------------------------------------


def _recording(place: Place, name: str, then: str) -> str:
    """A program that notes its arguments, then does what `then` says; returns the PATH with it."""
    folder = place.path / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(
        f"#!/bin/bash\necho \"${{*//$'\\n'/ }}\" >>{place.path}/{name}.calls\n{then}\n"
    )
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_apptainer_runs_every_step(place: Place) -> None:
    skip = 'while [[ "$1" != *.sif ]]; do shift; done; shift; exec "$@"'
    path = _recording(place, "apptainer", skip)
    job = place.submit(
        "done", "gdpo_llama3_8b.sub", flags=SMALL, PATH=path,
        NEMO_GDPO_SIF="/images/nemo.sif", NEMO_GDPO_MOUNTS="/data:/data",
    )  # fmt: skip
    assert place.finish(job)["JobState"] == "COMPLETED", place.log()
    begun = (place.path / "apptainer.calls").read_text().splitlines()
    assert len(begun) == 2 + 4  # two of the first node's, and the ranks
    mounts = f"{ROOT}:{ROOT},{place.path}:{place.path},/data:/data"
    for line in begun:
        assert line.startswith(f"exec --nv --bind {mounts} --pwd {place.path} /images/nemo.sif ")


def test_pyxis_runs_every_step(place: Place) -> None:
    """Stock Slurm does not know its flags: they are taken off before the real srun."""
    strip = (
        'for a in "$@"; do [[ "$a" == --container-* ]] || rest+=("$a"); done; '
        f'exec {shutil.which("srun")} "${{rest[@]}}"'
    )
    path = _recording(place, "srun", strip)
    job = place.submit(
        "done", "gdpo_llama3_8b.sub", flags=SMALL, PATH=path, NEMO_GDPO_IMAGE="/i.sqsh"
    )
    assert place.finish(job)["JobState"] == "COMPLETED", place.log()
    begun = (place.path / "srun.calls").read_text().splitlines()
    assert len(begun) == 3
    for line in begun:
        assert "--container-image=/i.sqsh" in line
        assert f"--container-mounts={ROOT}:{ROOT},{place.path}:{place.path} " in line
        assert f"--container-workdir={place.path} " in line


# --- the jobs that follow -----------------------------------------------------------------------


def _jobs_after(place: Place, script: str, act: str = "done") -> dict[str, dict[str, str]]:
    """Stage -> what `scontrol` tells of its job once it has ended."""
    # The devices do not reach below Slurm's own 128 CPUs: what follows wants a node each.
    job = place.submit(act, script, flags=SMALL, NEMO_GDPO_CHAIN="yes")
    assert place.finish(job)["JobState"] == "COMPLETED", place.log()
    name = script.removesuffix(".sub")
    found = {}
    for number in place.slurm.jobs_since(job):
        told = place.finish(number)
        found[told["JobName"].removeprefix(f"{name}-")] = told
    return found


def test_what_follows_holds_what_it_needs_and_runs_in_order(place: Place) -> None:
    jobs = _jobs_after(place, "gdpo_llama3_8b.sub")
    assert sorted(jobs) == ["evaluate", "export", "sample-base", "sample-gdpo"]
    assert {told["JobState"] for told in jobs.values()} == {"COMPLETED"}, place.log()
    assert {told["NumNodes"] for told in jobs.values()} == {"1"}
    gpus = {stage: told.get("TresPerNode") for stage, told in jobs.items()}
    one = "gres:gpu:1"
    assert gpus == {"export": None, "sample-base": one, "sample-gdpo": one, "evaluate": one}
    assert jobs["export"]["EndTime"] <= jobs["sample-gdpo"]["StartTime"]
    for sampled in ("sample-base", "sample-gdpo"):
        assert jobs[sampled]["EndTime"] <= jobs["evaluate"]["StartTime"]

    out = place.path / "out"
    (export,) = place.calls("megatron-to-hf")
    checkpoint = out / "checkpoints" / "step_00000040"
    assert export["arguments"][3:] == ["megatron-to-hf", str(checkpoint), str(out / "hf")]
    sampling = {c["SLURM_JOB_NAME"]: c["arguments"] for c in place.calls("nemo_gdpo.cli generate")}
    for model, path in (("base", place.path / "base"), ("gdpo", out / "hf")):
        given = sampling[f"gdpo_llama3_8b-sample-{model}"]
        assert given[-4:] == [
            f"model.restore_from_path={path}",
            f"data.prompts_path={place.path / 'prompts.jsonl'}",
            f"output_dir={out / 'samples' / model}",
            "generation=temperatures",
        ]
    (evaluation,) = place.calls("nemo_gdpo evaluate")
    assert evaluation["arguments"][3:] == [
        f"evaluation.runs={{base: {out}/samples/base, gdpo: {out}/samples/gdpo}}",
        f"evaluation.training={{gdpo: {out}}}",
        f"evaluation.reference_model={place.path}/base",
        f"evaluation.models={{base: {place.path}/base, gdpo: {out}/hf}}",
        f"output_dir={out}/evaluation",
    ]


def test_a_large_model_is_sampled_on_several_gpus_and_not_loaded_for_likelihoods(
    place: Place,
) -> None:
    jobs = _jobs_after(place, "gdpo_llama3_70b.sub")
    assert jobs["sample-gdpo"]["TresPerNode"] == "gres:gpu:4"
    for call in place.calls("nemo_gdpo.cli generate"):
        several = ["generation.tensor_parallel_size=4", "generation.ray.replicas=1"]
        assert call["arguments"][-2:] == several
    (evaluation,) = place.calls("nemo_gdpo evaluate")
    assert "reference_model" not in " ".join(evaluation["arguments"])


def test_when_a_job_of_the_chain_fails_those_that_wait_for_it_go(place: Place) -> None:
    jobs = _jobs_after(place, "gdpo_llama3_8b.sub", act="no export")
    states = {stage: told["JobState"] for stage, told in jobs.items()}
    assert states["export"] == "FAILED"
    assert states["sample-gdpo"] == states["evaluate"] == "CANCELLED"


def test_a_complete_run_is_not_started_again(place: Place) -> None:
    for _ in range(2):
        place.finish(place.submit("done", "gdpo_llama3_8b.sub", flags=SMALL))
    assert len(place.calls("-m nemo_gdpo train")) == 4
    assert "trained already: " in place.log()


def test_a_chain_that_the_cluster_would_not_take_is_said_before_training(place: Place) -> None:
    flags = {"NEMO_GDPO_CHAIN": "yes", "NEMO_GDPO_EXPORT_FLAGS": "--partition=nowhere"}
    ended = place.finish(place.submit("done", "gdpo_llama3_8b.sub", flags=SMALL, **flags))
    log = place.log()
    first, last = "jobs after training would be refused", "training will be skipped"
    assert log.index(first) < log.index(last)
    assert "invalid partition" in log
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
