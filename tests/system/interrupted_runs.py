"""`nemo-gdpo generate` as a process, on a tiny model, and what it should give."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.commands import cli
from tests.support.data import WORDS, write_jsonl
from tests.support.models import save_model
from tests.support.ranks import ROOT, clean_environment

PROMPTS = 250
TEMPERATURES = (0.7, 1.0)
SAMPLES = 2
SLOW = ("generation.max_num_seqs=2", "generation.in_flight=4", "generation.ray.batch_size=8")
"""An engine that holds few answers takes long enough to be disturbed, and stops soon."""
Key = tuple[str, str]


@dataclass(frozen=True)
class Sampling:
    """A model, prompts, and every row that they give, by one engine without interruption."""

    model: Path
    prompts: Path
    expected: dict[Key, dict[str, Any]]


def arguments(model: Path, prompts: Path, output: Path, *more: str) -> list[str]:
    """Overrides of all runs here."""
    return [
        f"model.restore_from_path={model}",
        f"data.prompts_path={prompts}",
        f"output_dir={output}",
        f"generation.num_samples={SAMPLES}",
        f"generation.temperature={list(TEMPERATURES)}".replace(" ", ""),
        "generation.max_tokens=24",
        "generation.logprobs=tokens",
        "generation.dtype=fp32",
        *more,
    ]


def read_rows(output: Path) -> dict[Key, dict[str, Any]]:
    """All rows of a directory by (prompt, sampling point); none may be there twice."""
    rows: dict[Key, dict[str, Any]] = {}
    for path in sorted(output.glob("generations-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            key = row["id"], json.dumps(row["sampling"], sort_keys=True)
            assert key not in rows, f"{key} is there twice"
            rows[key] = row
    return rows


def count_rows(output: Path) -> int:
    """Lines so far, of a run that may be writing."""
    return sum(path.read_bytes().count(b"\n") for path in output.glob("generations-*.jsonl"))


def same_samples(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Are two rows equal? Log-probabilities to 1e-4: sums depend on what else is in the batch."""
    numbers = ("token_logprobs", "cumulative_logprobs")
    if {k: v for k, v in found.items() if k not in numbers} != {
        k: v for k, v in expected.items() if k not in numbers
    }:
        return False
    return all(_near(found[name], expected[name]) for name in numbers)


def _near(found: Sequence[Any] | float, expected: Sequence[Any] | float) -> bool:
    if isinstance(found, float | int) and isinstance(expected, float | int):
        return abs(found - expected) < 1e-4
    assert not isinstance(found, float | int)
    assert not isinstance(expected, float | int)
    return len(found) == len(expected) and all(map(_near, found, expected))


@contextlib.contextmanager
def logged(log: Path, verb: str, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command line as a process whose output can be read while it runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nemo_gdpo.cli", verb, *overrides],
            stdout=output,
            stderr=output,
            env=clean_environment() | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()  # of one that is gone already, nothing
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def prepare(directory: Path) -> Sampling:
    """Save the model (heads of 32, the least that vLLM takes on a CPU) and sample once."""
    model = save_model(directory / "model", hidden_size=128)
    rows = [
        {"id": f"p{n}", "prompt": f"{WORDS[n % len(WORDS)]} {WORDS[n % 7]} {n}"}
        for n in range(PROMPTS)
    ]
    prompts = write_jsonl(directory / "prompts.jsonl", rows)
    output = directory / "one-engine"
    done = cli("generate", *arguments(model, prompts, output))
    assert done.status == 0, done.err
    expected = read_rows(output)
    assert len(expected) == PROMPTS * len(TEMPERATURES)
    return Sampling(model, prompts, expected)
