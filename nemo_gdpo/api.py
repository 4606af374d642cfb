"""The Python API: what the verbs of the command line do, with typed configurations.

    import nemo_gdpo
    from nemo_gdpo import recipes

    config = recipes.gdpo("smollm2", "pairs.jsonl", output_dir="runs/gdpo")
    result = nemo_gdpo.train(config)
    print(result.metrics[-1]["loss"], result.hf)

A mistake in the configuration or the input raises `nemo_gdpo.UserError`, whose message is one line
that says what is wrong, where, and how to fix it. Anything else that ends a run raises
`nemo_gdpo.RunError`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_gdpo.config.base import plain_data
from nemo_gdpo.config.evaluation import EvaluateConfig
from nemo_gdpo.config.generation import GenerateConfig
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.errors import EXIT_DONE, RunError
from nemo_gdpo.verbs.start import Task, check_together, run_ranks

if TYPE_CHECKING:
    from nemo_gdpo.evaluation.results import Results
    from nemo_gdpo.evaluation.rows import Generations


@dataclass(frozen=True)
class TrainResult:
    """What a training run left."""

    output_dir: Path
    finished: bool
    """False: a signal stopped it after a checkpoint; the same call resumes."""
    metrics: list[dict[str, Any]]
    """One entry an update: loss, grad_norm, rewards/margins, ..."""
    checkpoint: Path | None
    """The newest one."""
    hf: Path | None
    """The Hugging Face directory; None without `export_hf`, or when the run was stopped."""


def train(config: RunConfig) -> TrainResult:
    """Train as configured, resuming what is in `output_dir`.

    Under torchrun or srun this process is one rank of theirs, and every rank calls this. Otherwise
    the ranks of the mesh, be it one, are separate processes: megatron, and the shim that lets it
    run without a GPU, stay out of this one.

    Raises:
        UserError: the configuration or the input is wrong.
        RunError: the run failed; the newest checkpoint is complete.
    """
    finished = _run("train_plain" if not config.export_nemo else "train", config)
    output_dir = Path(config.output_dir)
    hf = output_dir / "hf"
    return TrainResult(
        output_dir,
        finished,
        _read_rows(output_dir / "metrics.jsonl"),
        _newest(output_dir / "checkpoints"),
        hf if finished and config.export_hf else None,
    )


def compute_reference(config: RunConfig) -> bool:
    """Make the reference's caches that a training run would make first; False when stopped.

    Raises:
        UserError: the configuration or the input is wrong.
        RunError: the computation failed.
    """
    return _run("reference", config)


def _run(task: Task, config: RunConfig) -> bool:
    checked, joined = check_together(lambda: plain_data(config))
    if joined:
        from nemo_gdpo.verbs.rank import TASKS

        return TASKS[task](checked) == EXIT_DONE
    return run_ranks(checked, task)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():  # stopped before the first update
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _newest(root: Path) -> Path | None:
    pointer = root / "latest"
    return root / pointer.read_text().strip() if pointer.is_file() else None


def generate(config: GenerateConfig) -> Generations:
    """Sample what is missing in `output_dir`, and read all that is there.

    Raises:
        UserError: the configuration or the input is wrong, or there is no engine to sample with.
        RunError: the engine, the server or the disk failed; what was sampled is kept.
    """
    from nemo_gdpo.evaluation.rows import read_run
    from nemo_gdpo.generation.cli import generate as sample

    status = sample(config)
    if status != EXIT_DONE:
        raise RunError(
            f"generate: sampling ended with status {status}, it says why above; call it again for "
            "the rest"
        )
    return read_run(Path(config.output_dir).name, Path(config.output_dir))


def evaluate(config: EvaluateConfig) -> Results:
    """Measure diversity and quality; writes evaluation.json and report.html into `output_dir`.

    Raises:
        UserError: the configuration or the input is wrong.
        RunError: a model, the judge's server or the disk failed.
    """
    # Nothing here is ever downloaded: all models are directories.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from nemo_gdpo.evaluation.cli import measure_and_report

    return measure_and_report(config)


def convert(source: str | Path, target: str | Path) -> Path:
    """Convert a model the way its form asks for: Hugging Face or `.nemo` to Megatron, and back.

    Raises:
        UserError: nothing that can be converted lies at `source`, or `target` cannot be written.
    """
    from nemo_gdpo.config.model_files import is_megatron_checkpoint
    from nemo_gdpo.conversion.convert import convert_hf_to_megatron, convert_megatron_to_hf
    from nemo_gdpo.conversion.nemo1.nemo_import import convert_nemo_to_megatron

    source, target = Path(source), Path(target)
    if is_megatron_checkpoint(source):
        convert_megatron_to_hf(source, target)
    elif source.suffix == ".nemo":
        convert_nemo_to_megatron(source, target)
    else:
        convert_hf_to_megatron(source, target)
    return target
