"""`slurm/generate.sub` on a real Slurm: two nodes, a signal in the middle, back into the queue."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ranks import ROOT

from .interrupted_runs import SLOW, Sampling, arguments, count_rows, read_rows, same_samples
from .slurm_cluster import SlurmCluster, slurm_cluster

pytestmark = pytest.mark.parallel

SCRIPT = ROOT / "slurm" / "generate.sub"
RUN_SECONDS = 240.0
"""One run of the job, on a machine that is busy."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=2) as cluster:
        yield cluster


def _submit(slurm: SlurmCluster, log: Path, overrides: list[str], **variables: str) -> int:
    exported = ",".join(f"{name}={value}" for name, value in variables.items())
    return slurm.sbatch(
        "--nodes=2",
        "--gpus-per-node=0",
        "--cpus-per-task=2",
        f"--output={log}",
        f"--export=ALL,NEMO_GDPO_HOME={ROOT}{exported and ','}{exported}",
        str(SCRIPT),
        *overrides,
    )


def _wait_until(condition: Callable[[], bool], log: Path) -> None:
    limit = time.monotonic() + RUN_SECONDS
    while not condition():
        assert time.monotonic() < limit, log.read_text() if log.exists() else "the job has no log"
        time.sleep(0.05)


def _nodes(log: Path) -> list[str]:
    """Nodes on which an engine came up."""
    found = re.findall(r"engine \d of 2 is up on (\w+),", log.read_text() if log.exists() else "")
    return sorted(found)


def _is_queued_again(job: dict[str, str]) -> bool:
    return job["Restarts"] == "1" and job["JobState"] == "PENDING" and job["Reason"] == "BeginTime"


def test_the_job_stops_in_time_is_queued_again_and_completes(
    slurm: SlurmCluster, sampling: Sampling, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    overrides = arguments(sampling.model, sampling.prompts, output, *SLOW)
    job = _submit(slurm, log, overrides)

    _wait_until(lambda: count_rows(output) >= 50 and _nodes(log) == ["n1", "n2"], log)
    # As `#SBATCH --signal=B:USR1@300` does five minutes before the end.
    slurm.run("scancel", "--batch", "--signal=USR1", str(job))
    _wait_until(lambda: _is_queued_again(slurm.job(job)), log)
    between = count_rows(output)
    assert 50 <= between < len(sampling.expected), log.read_text()
    # Slurm makes a job that was requeued wait for two minutes. A node refuses it in the second in
    # which it was revoked.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    ended = slurm.finish(job, RUN_SECONDS)

    text = log.read_text()
    assert ended["JobState"] == "COMPLETED", text
    assert ended["ExitCode"] == "0:0"
    assert "ended with 75" in text
    assert f"{between} are there" in text, "the second run did not begin where the first ended"
    found = read_rows(output)
    assert found.keys() == sampling.expected.keys()
    assert all(same_samples(row, sampling.expected[key]) for key, row in found.items())
    assert not Path(f"/tmp/ray-{job}").exists()


def test_the_job_fails_with_the_reason_of_the_run(slurm: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = _submit(slurm, log, ["model.restore_from_path=/none", f"output_dir={tmp_path / 'out'}"])
    ended = slurm.finish(job, RUN_SECONDS)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), log.read_text()
    assert "/none does not exist" in log.read_text()
    assert ended["Restarts"] == "0"
