"""Every problem of a configuration at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_gdpo.config.checks_layers import (
    check_attention_backend,
    check_attention_variables,
    check_layers,
)
from nemo_gdpo.config.checks_mesh import (
    check_architecture,
    check_mesh,
    check_precision,
    check_world,
)
from nemo_gdpo.config.checks_nf4 import check_nf4
from nemo_gdpo.config.checks_settings import (
    check_checkpoints,
    check_data,
    check_groups,
    check_lengths,
    check_live_labels,
    check_logger_packages,
    check_lora,
    check_pair_columns,
    check_reference,
    check_scores,
    check_training,
    check_unpaired,
    check_wandb_login,
)
from nemo_gdpo.config.checks_shapes import check_dynamic_rope, check_fp8_shapes
from nemo_gdpo.config.memory import check_memory
from nemo_gdpo.config.model_files import KEY as MODEL_KEY
from nemo_gdpo.config.model_files import model_file_problems, read_model_config
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.world import Hardware
from nemo_gdpo.errors import UserError
from nemo_gdpo.precisions import arithmetic


def problems(
    config: RunConfig,
    world: Hardware | None = None,
    model_config: Mapping[str, Any] | None = None,
    *,
    files: bool = True,
) -> list[Problem]:
    """All problems that keep a run from starting, in the order of the keys' sections.

    Args:
        config: well-typed; see `problems_of_mapping` for the step before.
        world: the machine and the ranks; None judges what the configuration says alone.
        model_config: config.json of the starting model (see `read_model_config`); without it heads
            and layers are not judged.
        files: also look for the model's and the data's files. False for a run on another machine.
    """
    found: list[Problem] = []
    if files or config.model.restore_from_path is None:
        found += model_file_problems(config.model.restore_from_path)
    found += check_mesh(config)
    found += check_world(config, world)
    if model_config is not None:
        found += check_architecture(config, dict(model_config))
        found += check_dynamic_rope(config, dict(model_config))
        if world is None or arithmetic(config.precision) in world.precisions:
            found += check_fp8_shapes(config, dict(model_config))
    found += check_precision(config, world)
    found += check_layers(config, world)
    found += check_attention_backend(config, world)
    if world is not None:
        found += check_attention_variables(config, world, os.environ)
    found += check_scores(config)
    found += check_groups(config)
    found += check_pair_columns(config)
    found += check_unpaired(config)
    found += check_reference(config, files=files)
    found += check_live_labels(config)
    found += check_lora(config, files=files)
    found += check_nf4(config, world, model_config)
    found += check_lengths(config)
    if world is None:  # of a machine that is there, ranks find out
        found += check_memory(config, model_config)
    found += check_data(config, files=files)
    found += check_training(config)
    found += check_checkpoints(config)
    if files:
        found += check_wandb_login(config)
        found += check_logger_packages(config)
        found += _check_output(config)
    return found


def _check_output(config: RunConfig) -> list[Problem]:
    path = Path(config.output_dir)
    if path.exists() and not path.is_dir():
        return [Problem("output_dir", f"{path} is a file", "choose a directory")]
    return []


def problems_of_mapping(
    config: Mapping[str, Any], world: Hardware | None = None, *, files: bool = True
) -> tuple[RunConfig, list[Problem]]:
    """Like `problems`, from a plain resolved mapping: faults of the schema are named, too.

    A faulty value stands at its default while the rest is judged, and nothing further is said
    about its key.
    """
    parsed, found = TRAIN.parse_leniently(config)
    model_config: dict[str, Any] | None = None
    path = parsed.model.restore_from_path
    unreadable: list[Problem] = []
    if path is not None:
        try:
            model_config = read_model_config(path)
        except UserError as error:
            unreadable = [Problem(MODEL_KEY, str(error), "or give another model")]
    faulty = {problem.key for problem in found}
    further = problems(parsed, world, model_config, files=files)
    found += unreadable
    found += [problem for problem in further if problem.key not in faulty]
    return parsed, found
