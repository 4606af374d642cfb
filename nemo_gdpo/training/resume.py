"""Resuming: checks that the checkpoints are of this run, then restores the newest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_gdpo.config.base import defaults_of, plain_data
from nemo_gdpo.config.objective import OBJECTIVE_SECTIONS, plain_settings
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank, gathered, on_every_rank
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.late import sizes_of, wait_for_files
from nemo_gdpo.training.checkpoint import Found, find_newest_whole, newest_trainer_state
from nemo_gdpo.training.checkpoint_save import told
from nemo_gdpo.training.trainer import PreferenceTrainer

FIXED = ("weights", "objective", "global_batch_size", "precision")
"""Settings that give a checkpoint's numbers their meaning. The length of the run, the learning rate
and the like may be changed on purpose."""


def identity_of(config: RunConfig, weights: str) -> dict[str, Any]:
    """Settings that a resumed run must share with the one that saved; plain JSON.

    Args:
        config: of the run.
        weights: fingerprint of the weights it begins with.
    """
    return {
        "weights": weights,
        "objective": plain_settings(config.objective),
        "global_batch_size": config.model.global_batch_size,
        "precision": config.precision,
        "optim": plain_data(config.optim),
        "seed": config.seed,
    }


def agree_on_config(config: RunConfig) -> None:
    """Refuse ranks that were started with different configurations. Collective.

    Raises:
        UserError: on every rank, naming the first key that differs and both values.
    """
    own = on_every_rank("comparing configurations", lambda: _leaves(plain_data(config)))
    main = from_main_rank("comparing configurations", lambda: own)
    differing = [
        f"{key}: {main.get(key)} on rank 0, {value} on rank {dist.get_rank()}"
        for key, value in own.items()
        if main.get(key) != value
    ]
    first = next((found[0] for found in gathered(differing) if found), None)
    if first is not None:
        error = UserError(
            f"the ranks were started with different configurations ({first}); give every rank the "
            "same arguments and environment variables"
        )
        error.agreed = True
        raise error


def _leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _of_this_version(saved: dict[str, Any]) -> dict[str, Any]:
    """An identity as this version writes it: a setting that came later was at its default then."""
    objective = saved.get("objective")
    if not isinstance(objective, dict) or objective.get("name") not in OBJECTIVE_SECTIONS:
        return saved
    section = OBJECTIVE_SECTIONS[objective["name"]]
    return saved | {"objective": {**defaults_of(section), **objective}}


def _check_identity(saved: dict[str, Any], own: dict[str, Any], checkpoint: Path) -> None:
    saved = _of_this_version(saved)
    differing = [name for name in FIXED if saved.get(name) != own[name]]
    if differing:
        name = differing[0]
        raise UserError(
            f"resume: {checkpoint} was made with another {', '.join(differing)} "
            f"({name}: {saved.get(name)}, now {own[name]}); restore the setting, or set another "
            "output_dir to start a new run"
        )


def refuse_another_run(output_dir: Path, identity: dict[str, Any]) -> None:
    """Refuse an output_dir that holds another run's checkpoints, before anything is written.

    Collective.

    Raises:
        UserError: on every rank.
    """

    def look() -> None:
        checkpoint, state = newest_trainer_state(output_dir / "checkpoints")
        if checkpoint is not None:
            _check_identity(state["identity"], identity, checkpoint)

    from_main_rank("looking for another run's checkpoints", look)


@dataclass(frozen=True)
class _Newest:
    """What rank 0 found below `checkpoints`, for the others."""

    found: Found
    sizes: dict[str, int]
    """Files of the newest valid checkpoint."""


def _find(found: Found, identity: dict[str, Any]) -> _Newest:
    if found.path is None:
        return _Newest(found, {})
    saved = json.loads((found.path / "trainer_state.json").read_text())
    _check_identity(saved["identity"], identity, found.path)
    return _Newest(found, sizes_of(found.path))


def refuse_longer(checkpoint: Path, last: int) -> None:
    """Refuse a checkpoint with more steps than the run: what it would export is another model.

    Raises:
        UserError: with both numbers.
    """
    step = int(checkpoint.name.removeprefix("step_"))
    if step > last:
        raise UserError(
            f"resume: {checkpoint} has {step} steps, more than the {last} of this run; raise "
            "trainer.max_steps (or trainer.max_epochs), or set another output_dir"
        )


def resume(root: Path, trainer: PreferenceTrainer) -> list[str]:
    """Restore the newest valid checkpoint below `root`, if there is one. Collective.

    Returns:
        What to tell the user: checkpoints passed over and why, and where the run resumes.

    Raises:
        UserError: the checkpoint belongs to another run or has more steps than this one, or a rank
            does not see it.
    """
    found = find_newest_whole(root, full=trainer.config.trainer.verify_checkpoint == "full")
    newest = from_main_rank("looking for checkpoints", lambda: _find(found, trainer.identity))
    lines, path = list(newest.found.skipped), newest.found.path
    if path is not None:
        on_every_rank("comparing the steps", lambda: refuse_longer(path, trainer.total_steps))
        remedy = "set output_dir to a directory that all nodes share"
        on_every_rank(
            "looking for the checkpoint", lambda: wait_for_files(path, newest.sizes, remedy)
        )
        state = trainer.checkpointer.load(path)
        on_every_rank("resuming", lambda: trainer.restore(state))
        step, last = trainer.progress.step, trainer.total_steps
        lines.append(f"resumed {path.name}: {step} of {last} steps")
        seconds = {"look and hash": found.seconds, **trainer.checkpointer.timings}
        whole = sum(seconds.values())
        lines.append(f"checkpoint {path.name} read: {whole:.1f} s ({told(seconds)})")
    return lines
