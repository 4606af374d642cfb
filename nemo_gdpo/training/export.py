"""Export a finished run to Hugging Face, with a model card that says how it was made."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemo_gdpo import __version__
from nemo_gdpo.conversion.convert import convert_megatron_to_hf
from nemo_gdpo.conversion.formats.assets import base_licence
from nemo_gdpo.conversion.formats.card import write_card

if TYPE_CHECKING:
    from nemo_gdpo.training.run import Run

METHODS = {
    "gdpo": ("gflownet_dpo", "Kwon et al., GDPO: Learning to Directly Align Language Models with "
             "Diversity Using GFlowNets, EMNLP 2024"),
    "odpo": ("offset_dpo", "Amini, Vieira & Cotterell, Direct Preference Optimization with an "
             "Offset, 2024"),
    "adpo": ("active_dpo", "Ji, He & Gu, Reinforcement Learning from Human Feedback with Active "
             "Queries, 2024"),
    "dpo": ("dpo", "Rafailov et al., Direct Preference Optimization, 2023"),
    "ipo": ("ipo", "Azar et al., A General Theoretical Paradigm to Understand Learning from Human "
            "Preferences, 2023"),
}  # fmt: skip
"""Objective -> (unambiguous method name, citation)."""


def _last_metrics(output_dir: Path) -> dict[str, float]:
    path = output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines:
        return {}
    entry = json.loads(lines[-1])
    return {name: value for name, value in entry.items() if not name.startswith("perf/")}


def run_facts(run: Run) -> dict[str, Any]:
    """What the model card of this run's export says, up to the last step that was logged."""
    cfg, layout = run.cfg, run.mesh.layout
    method, citation = METHODS[cfg.objective.name]
    return {
        "base_model": run.source.name,
        "licence": base_licence(run.source.assets),
        "objective": {"method": method} | dict(cfg.objective.items()),
        "data": {"path": cfg.data.train_path, "fingerprint": run.train.fingerprint,
                 "pairs": len(run.train)},
        "layout": f"TP{layout.tensor} PP{layout.pipeline} CP{layout.context} "
                  f"DP{run.mesh.data_size}",
        "precision": cfg.precision,
        # The distribution's version of torch leaves out which build it is: 2.13.0+cu130.
        "versions": {"nemo_gdpo": __version__, "torch": str(torch.__version__)}
        | {name: version(name) for name in ("megatron-core", "nemo-toolkit")},
        "metrics": _last_metrics(run.output_dir),
        "citations": [citation],
    }  # fmt: skip


def write_assets(run: Run, checkpoint: Path) -> None:
    """Put what an export needs, and what its card says, beside a training checkpoint."""
    run.source.write_assets(checkpoint)
    write_card(checkpoint, run_facts(run))


def export_run(run: Run, checkpoint: Path) -> Path:
    """Write `output_dir/hf` from a checkpoint, on one rank, streaming."""
    target = run.output_dir / "hf"
    convert_megatron_to_hf(checkpoint, target, card=run_facts(run), progress=True)
    return target
