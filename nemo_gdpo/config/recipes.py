"""Whole runs as functions: what the presets say on the command line, typed, from Python.

    from nemo_gdpo import recipes

    config = recipes.gdpo("smollm2", "pairs.jsonl", output_dir="runs/gdpo")
    config = recipes.change(config, {"optim.lr": 1e-6, "trainer.max_steps": 200})

A recipe returns a `RunConfig`; nothing is read or started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nemo_gdpo.config.base import Section, plain_data
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.objective import (
    ADPOSettings,
    DPOSettings,
    GDPOSettings,
    IPOSettings,
    ObjectiveConfig,
    ODPOSettings,
)
from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.schema import TRAIN, RunConfig

S = TypeVar("S", bound=Section)
Place = str | Path


def run_config(*overrides: str, file: Place | None = None) -> RunConfig:
    """The configuration of a training run, as the command line composes it.

    Args:
        overrides: `key=value`, `group=preset`, `experiment=name`.
        file: a run's own config.yaml, or any file with some of the keys.

    Raises:
        UserError: an unknown key, preset or value; all problems at once, with suggestions.
    """
    return TRAIN.parse(compose(overrides, TRAIN, file=None if file is None else Path(file)).plain)


def change(config: S, changes: Mapping[str, Any], root: Root[Any] = TRAIN) -> S:
    """The same configuration with other values under some dotted keys.

    Args:
        config: what to start from; it stays as it is.
        changes: `{"optim.lr": 1e-6}`; an objective is changed as a whole: `{"objective": DPO()}`.
        root: what `config` belongs to, for the suggestions.

    Raises:
        UserError: an unknown key or a value out of range; all of them at once.
    """
    plain = plain_data(config)
    known = root.keys() | ({root.choice} if root.choice is not None else set())
    raise_problems([root.unknown_key(key) for key in changes if key not in known])
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        node = plain
        for section in sections:
            node = node[section]
        node[leaf] = plain_data(value) if key == root.choice else value
    parsed: S = root.parse(plain)
    return parsed


def _fine_tuning(
    objective: ObjectiveConfig,
    model: Place,
    train: Place,
    validation: Place | None,
    output_dir: Place | None,
) -> RunConfig:
    changes: dict[str, Any] = {
        "objective": objective,
        "model.restore_from_path": str(model),
        "data.train_path": str(train),
        "data.validation_path": None if validation is None else str(validation),
        "output_dir": str(output_dir or f"runs/{objective.name}"),
    }
    return change(RunConfig(), changes)


def dpo(
    model: Place,
    train: Place,
    *,
    validation: Place | None = None,
    output_dir: Place | None = None,
    objective: DPOSettings | IPOSettings | None = None,
) -> RunConfig:
    """Direct preference optimisation of one model on one machine; IPO with `objective=IPO()`."""
    return _fine_tuning(objective or DPOSettings(), model, train, validation, output_dir)


def odpo(
    model: Place,
    train: Place,
    *,
    validation: Place | None = None,
    output_dir: Place | None = None,
    objective: ODPOSettings | None = None,
) -> RunConfig:
    """DPO with an offset; the pairs need scores."""
    return _fine_tuning(objective or ODPOSettings(), model, train, validation, output_dir)


def adpo(
    model: Place,
    train: Place,
    *,
    validation: Place | None = None,
    output_dir: Place | None = None,
    objective: ADPOSettings | None = None,
) -> RunConfig:
    """Active-query DPO; the data's own labels answer the queries."""
    return _fine_tuning(objective or ADPOSettings(), model, train, validation, output_dir)


def gdpo(
    model: Place,
    train: Place,
    *,
    validation: Place | None = None,
    output_dir: Place | None = None,
    objective: GDPOSettings | None = None,
) -> RunConfig:
    """GFlowNet-DPO with the contrastive balance at kappa 8."""
    return _fine_tuning(objective or GDPOSettings(), model, train, validation, output_dir)


def experiment(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A whole run of `conf/experiment/`, such as `gdpo_llama3_8b`: mesh, batch, data, schedule.

    Raises:
        UserError: unknown experiment; the known ones are named.
    """
    return run_config(f"experiment={name}", *overrides)


def gdpo_llama3_8b(*overrides: str) -> RunConfig:
    """GFlowNet-DPO of Llama 3 8B on Anthropic HH: 2 nodes of 8 GPUs."""
    return experiment("gdpo_llama3_8b", overrides)


def gdpo_llama3_8b_lora(*overrides: str) -> RunConfig:
    """The same with adapters (LoRA), and the policy without them as the reference: one GPU."""
    return experiment("gdpo_llama3_8b_lora", overrides)


def odpo_llama3_8b(*overrides: str) -> RunConfig:
    """DPO with an offset of Llama 3 8B on UltraFeedback: 2 nodes of 8 GPUs."""
    return experiment("odpo_llama3_8b", overrides)


def adpo_llama3_8b(*overrides: str) -> RunConfig:
    """Active-query DPO of Llama 3 8B on UltraFeedback: 2 nodes of 8 GPUs."""
    return experiment("adpo_llama3_8b", overrides)
