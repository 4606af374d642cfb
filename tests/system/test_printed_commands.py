"""The shell blocks of README.md and docs/operator.md work as they are printed.

Each is run here, or in another test, or is listed with the reason why it cannot be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.printed import all_blocks
from tests.support.ranks import clean_environment

pytestmark = pytest.mark.parallel

SECONDS = 540.0
BLOCKS = all_blocks()
OWN_DATA = (
    "README.md: nemo-gdpo validate objective=gdpo",
    "README.md: nemo-gdpo generate model.restore_from_path=runs/mine/hf",
)
"""Run one after the other, in a directory that has what they name."""
ELSEWHERE = "README.md: export NEMO_GDPO_MODEL=/data/llama3-8b NEMO_GDPO_OUTPUT=/data/runs/gdpo"
"""Describes another machine, and checks no file of this one."""
IN_SLURM = {name for name, block in BLOCKS.items() if "sbatch " in block}
"""Run by tests/system/test_slurm_scripts.py."""
REASONS = {
    "README.md: make demo #": "12 minutes and a package index; tests/examples runs its parts",
    'README.md: {"prompt": [{"role": "user",': "a line of data",
    "README.md: make python-training-gpu #": "installs 16 GB; tests/environments has the locks",
    "README.md: srun --nodes=2 --ntasks-per-node=8": "16 GPUs, and Llama 3 8B",
    "README.md: torchrun --nnodes=2 --nproc-per-node=8": "16 GPUs, and Llama 3 8B",
}
"""Why a block is not run."""


def test_every_block_is_run_or_has_a_reason() -> None:
    known = [*OWN_DATA, ELSEWHERE, *IN_SLURM, *REASONS]
    assert sorted(known) == sorted(BLOCKS)


def run(block: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Paste a block into a shell that stops at the first error."""
    own = {k: v for k, v in clean_environment().items() if not k.startswith("NEMO_GDPO_")}
    # Beside the interpreter, as README.md says. Not resolved: that would leave the environment.
    own["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own["NEMO_GDPO_CACHE"] = os.environ["NEMO_GDPO_CACHE"]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=directory, env=own, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done


def test_the_experiment_is_shown_and_valid_without_its_files(tmp_path: Path) -> None:
    done = run(BLOCKS[ELSEWHERE], tmp_path)
    assert "restore_from_path: /data/llama3-8b" in done.stdout
    assert "mesh       16 ranks: TP4 x PP1 x CP1 x DP4" in done.stdout
    assert not list(tmp_path.iterdir())


def test_your_own_data(tmp_path: Path) -> None:
    """Checked, trained on two ranks, sampled with vLLM and evaluated, with a tiny model."""
    save_model(tmp_path / "MODEL", head_dim=32, max_position_embeddings=2048)
    write_jsonl(tmp_path / "pairs.jsonl", pairs(16))
    prompts = [{"id": word, "prompt": f"{word} film"} for word in ("good", "dull")]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    for name in OWN_DATA:
        run(BLOCKS[name], tmp_path)
    runs = tmp_path / "runs"
    assert (runs / "mine" / "hf" / "model.safetensors").is_file()
    assert len((runs / "mine" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (runs / "report" / "report.html").is_file()
