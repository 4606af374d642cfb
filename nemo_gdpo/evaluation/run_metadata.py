"""Metadata of a run's model beside its responses: how it was sampled and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_gdpo.config.yaml_files import read_yaml_mapping
from nemo_gdpo.errors import UserError

KEY = "evaluation.training"
_SHOWN = (
    "model.restore_from_path",
    "model.global_batch_size",
    "optim.lr",
    "trainer.max_steps",
    "trainer.max_epochs",
    "precision",
    "seed",
)


def training_metadata(directory: Path) -> dict[str, Any]:
    """Objective with its settings, the main hyper-parameters, and how far training came.

    Args:
        directory: output_dir of `nemo-gdpo train`.

    Raises:
        UserError: config.yaml or metrics.jsonl is missing or cannot be read.
    """
    file = directory / "config.yaml"
    try:
        config = read_yaml_mapping(file)
        objective = _section(config, "objective")
        shown = {name: _value(config, name) for name in _SHOWN}
    except ValueError as error:
        raise UserError(f"{KEY}: {file} {error}; give the output_dir of a training run") from None
    named = {f"objective.{name}": value for name, value in objective.items() if name != "name"}
    last = _last_step(directory / "metrics.jsonl")
    queries = last.get("adpo/queries_total")
    return {
        "objective": objective.get("name"),
        **named,
        **{name: value for name, value in shown.items() if value is not None},
        "steps": last.get("step"),
        "pairs seen": last.get("consumed_pairs"),
        **({} if queries is None else {"queries asked": queries}),
    }


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise ValueError(f"has no section {name}")
    return section


def _value(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where a file, of another version perhaps, has no such key."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _last_step(file: Path) -> dict[str, Any]:
    last: dict[str, Any] = {}
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                # Validation may have separate lines.
                last = {**last, **entry}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{KEY}: {file} cannot be read ({error}); give the output_dir of a training run"
        ) from None
    return last
