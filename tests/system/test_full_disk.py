"""A disk that is full at each thing that a training run writes: one line; the next start goes on.

The limit is the kernel's, of the size of a file: a write past it fails as on a full disk.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Result, common, metrics, several, steps
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = pytest.mark.parallel

STEPS = 60
LIMITS = {"lock": 500, "data": 50_000, "reference": 50_000, "metrics": 40_000,
          "checkpoint": 100_000, "export": 100_000}  # fmt: skip
"""What cannot be written -> greatest size of a file, in bytes. The tokenizer is copied first: it is
smaller than all but the first."""
SAID = {
    "lock": "output_dir: {output} cannot be written (No space left on device)",
    "data": "{output}/data/train: cannot be written",
    "reference": "the reference cache {output}/reference/train could not be written",
    "metrics": "[Errno 27] File too large; the newest checkpoint is complete",
    "checkpoint": "could not write a checkpoint in {output}/checkpoints",
    "export": "{output}/hf could not be written (File too large)",
}


def shell(script: str) -> list[str]:
    return ["!", "sh", "-euc", script]


def limited(bytes_: int | None) -> list[str]:
    """Limit the size of files of the process that runs the commands."""
    size = "unlimited" if bytes_ is None else str(bytes_)
    return shell(f"prlimit --pid $PPID --fsize={size}:unlimited")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    root = tmp_path_factory.mktemp("full")
    model, output = save_model(root / "model"), root / "output"
    data = write_jsonl(root / "train.jsonl", pairs(1500))
    train = ["train", *common(model, data, output, *steps(STEPS), "objective=dpo")]
    commands: dict[str, list[str]] = {}
    for name, limit in LIMITS.items():
        if name == "reference":  # the data are there, as of a start that came so far
            commands["begun"] = ["reference", *train[1:]]
            commands["lost"] = shell(f"rm -r {output}/reference")
        if name == "metrics":
            commands["referenced"] = ["reference", *train[1:]]
        if name == "export":
            commands["trained"] = train
        commands[f"limit {name}"] = limited(limit)
        commands[name] = [*train, "export_hf=true"] if name == "export" else train
        commands[f"lift {name}"] = limited(None)
        commands[f"left {name}"] = shell(f"find {root}/output -not -type d 2>/dev/null || true")
    commands["exported"] = [*train, "export_hf=true"]
    return output, several(root / "logs", commands)


@pytest.mark.parametrize("name", LIMITS)
def test_one_line_and_status_1(outcome: tuple[Path, dict[str, Result]], name: str) -> None:
    output, done = outcome
    assert done[f"limit {name}"].status == 0, done[f"limit {name}"].err
    result = done[name]
    assert result.status == 1, result.err
    (line,) = result.complaints
    assert line.startswith("nemo-gdpo: error: ")
    assert SAID[name].format(output=output) in line
    assert "Traceback" not in result.err


def test_a_start_that_can_write_nothing_leaves_nothing(
    outcome: tuple[Path, dict[str, Result]],
) -> None:
    assert outcome[1]["left lock"].out == ""


def test_no_half_written_file_stays(outcome: tuple[Path, dict[str, Result]]) -> None:
    for name in LIMITS:
        left = outcome[1][f"left {name}"].out.splitlines()
        assert [path for path in left if path.endswith(".tmp") or ".tmp/" in path] == []


def test_the_next_start_goes_on(outcome: tuple[Path, dict[str, Result]]) -> None:
    output, done = outcome
    for name in ("begun", "referenced", "trained", "exported"):
        assert done[name].status == 0, f"{name}: {done[name].err}"
    assert "as tokenised before" in done["reference"].out
    assert f"reference train: reused {output}/reference/train" in done["trained"].out
    assert f"resumed step_{STEPS:08d}: {STEPS} of {STEPS} steps" in done["exported"].out
    assert (output / "hf" / "model.safetensors").is_file()
    assert [row["step"] for row in metrics(output)] == [*range(STEPS)]
