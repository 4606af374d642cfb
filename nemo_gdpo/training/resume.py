"""Resuming: checks that the checkpoints are of this run, then restores the newest."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_gdpo.config.base import OnResume, defaults_of, plain_data
from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.config.help import keys
from nemo_gdpo.config.objective import OBJECTIVE_SECTIONS, plain_settings
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.control import from_main_rank, gathered, on_every_rank
from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import read_json_object
from nemo_gdpo.io.late import sizes_of, wait_for_files
from nemo_gdpo.io.rows import complete_lines
from nemo_gdpo.precisions import DELAYED
from nemo_gdpo.training.checkpoint import (
    LATEST,
    Found,
    checkpoint_names,
    find_newest_whole,
    newest_trainer_state,
    step_of,
)
from nemo_gdpo.training.checkpoint_save import told
from nemo_gdpo.training.datasets import Planned
from nemo_gdpo.training.loggers import METRICS
from nemo_gdpo.training.trainer import PreferenceTrainer

FIXED = ("weights", "objective", "global_batch_size", "precision")
"""What gives a checkpoint's numbers their meaning, by the names that older checkpoints have for it.
Further settings that may not change are declared as such where they are declared at all."""
_BY_NAME = ("objective.", "model.global_batch_size", "precision")
"""Keys that `FIXED` has already."""
RANK = "lora.rank"
"""Key that says whether there are adapters."""
BASE_PRECISION = "lora.base_precision"
LEDGER = "label.ledger"
REFERENCE_WEIGHTS = "weights of reference_model"
"""Name among the settings; None where the reference is what training starts from."""
IDENTITY = "identity.json"
"""File of the output_dir in which a run says what it is, from its beginning."""


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
        # A null, unlike others, is a run of another kind.
        "settings": {
            RANK: config.lora.rank,
            LEDGER: config.label.ledger,
            **fixed_settings(config),
        },
        "optim": plain_data(config.optim),
        "seed": config.seed,
    }


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """Every key that may not change and has no name of its own in an identity, but for nulls."""
    values = _leaves(plain_data(config))
    return {
        key.name: values[key.name]
        for key in keys(TRAIN)
        if key.on_resume is OnResume.FIXED
        and not key.name.startswith(_BY_NAME)
        and values[key.name] is not None
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
    objective, optim = saved.get("objective"), saved.get("optim")
    if "settings" not in saved and isinstance(optim, dict):
        saved = saved | {"settings": {f"optim.{key}": value for key, value in optim.items()}}
    saved = saved | {
        "settings": {
            RANK: None,
            BASE_PRECISION: "run",
            REFERENCE_WEIGHTS: None,
            LEDGER: None,
            **(saved.get("settings") or {}),
        }
    }
    if not isinstance(objective, dict) or objective.get("name") not in OBJECTIVE_SECTIONS:
        return saved
    section = OBJECTIVE_SECTIONS[objective["name"]]
    return saved | {"objective": {**defaults_of(section), **objective}}


def _named_architecture(architecture: dict[str, Any] | None) -> dict[str, Any]:
    return {f"architecture.{name}": value for name, value in (architecture or {}).items()}


def _check_identity(saved: dict[str, Any], own: dict[str, Any], checkpoint: Path) -> None:
    saved = _of_this_version(saved)
    differing = {
        name: (saved.get(name), own[name]) for name in FIXED if saved.get(name) != own[name]
    }
    settings, data = saved.get("settings") or {}, saved.get("data") or {}
    # Not in checkpoints of earlier versions, whose weights are all that is known.
    architecture = _named_architecture(saved.get("architecture"))
    for known, now in (
        (settings, own["settings"]),
        (data, own.get("data") or {}),
        (architecture, _named_architecture(own.get("architecture"))),
    ):
        differing |= {
            name: (known[name], value)
            for name, value in now.items()
            if name in known and known[name] != value
        }
    if differing:
        name, (before, now) = next(iter(differing.items()))
        if name == "objective":
            name, before, now = _first_difference(before, now)
        raise UserError(
            f"resume: {checkpoint} was made with another {', '.join(differing)} "
            f"({name}: {before}, now {now}); restore the setting, or set another "
            "output_dir to start a new run"
        )


def _first_difference(before: Any, now: dict[str, Any]) -> tuple[str, Any, Any]:
    """The setting in which two objectives differ, with both values."""
    if not isinstance(before, dict):
        return "objective", before, now
    name = next(n for n in now if before.get(n) != now[n])
    return f"objective.{name}", before.get(name), now[name]


@dataclass(frozen=True)
class Earlier:
    """What an output_dir says of the run that began there. Each is None where it is not there."""

    checkpoint: Path | None
    state: dict[str, Any]
    """Trainer state of that checkpoint, the newest one with a readable one."""
    record: dict[str, Any] | None
    """What stands in identity.json."""
    output_dir: Path

    @classmethod
    def read(cls, output_dir: Path) -> Earlier:
        """Look; nothing is written.

        Raises:
            UserError: identity.json is damaged.
        """
        checkpoint, state = newest_trainer_state(output_dir / "checkpoints")
        path = output_dir / IDENTITY
        remedy = "restore it, or set another output_dir to start a new run"
        record = read_json_object(path, missing=remedy) if path.exists() else None
        return cls(checkpoint, state, record, output_dir)

    def refuse_another(self, identity: dict[str, Any]) -> None:
        """Refuse a run that is not this one.

        Raises:
            UserError: naming what differs, with both values.
        """
        if self.checkpoint is not None:
            _check_identity(self.state["identity"], identity, self.checkpoint)
        if self.record is not None:
            _check_identity(self.record, identity, self.output_dir)

    @property
    def date(self) -> str | None:
        """Day that its templates write; None without a clock, or for a new run."""
        found = self.record or self.state.get("identity") or {}
        date = (found.get("settings") or {}).get("data.date")
        return None if date is None else str(date)

    def refuse_other_data(self, train: Planned, data: DataConfig) -> None:
        """Refuse pairs, or an order of theirs, that are not the newest checkpoint's.

        Raises:
            UserError: naming what differs, with both values.
        """
        if self.checkpoint is not None:
            sampler = PreferenceSampler.of(data, train.pairs, train.fingerprint)
            sampler.load_state_dict(self.state["sampler"])


def refuse_another_run(output_dir: Path, identity: dict[str, Any]) -> Earlier:
    """What is in output_dir; refused where it is of another run, before anything is written.

    Collective.

    Raises:
        UserError: on every rank.
    """

    def look() -> Earlier:
        earlier = Earlier.read(output_dir)
        earlier.refuse_another(identity)
        return earlier

    return from_main_rank("looking for another run's checkpoints", look)


def refuse_unreadable_metrics(output_dir: Path) -> None:
    """Refuse a metrics.jsonl that is there and cannot be read; a torn last line does not count.

    Raises:
        UserError: naming the line.
    """
    path = output_dir / METRICS
    if not path.exists():
        return
    remedy = "restore the file, or move it away"
    try:
        for number, line in complete_lines(path):
            try:
                step = json.loads(line)["step"]
            except (ValueError, TypeError, KeyError):
                step = None
            if type(step) is not int:
                raise UserError(f"resume: {path}, line {number}: not the line of a step; {remedy}")
    except OSError as error:
        raise UserError(f"resume: {path} cannot be read ({error}); {remedy}") from None


@dataclass(frozen=True)
class Newest:
    """What rank 0 found below `checkpoints`, for the others."""

    found: Found
    sizes: dict[str, int]
    """Files of the newest valid checkpoint."""
    names: tuple[str, ...]
    """All that was there, the newest first."""

    def refuse_shorter(self, steps: int) -> None:
        """Refuse a run that is to have fewer updates than were made.

        Raises:
            UserError: naming both numbers.
        """
        path = self.found.path
        if path is not None and step_of(path) > steps:
            raise UserError(
                f"trainer.max_steps, trainer.max_epochs: {steps} updates, and {path} has made "
                f"{step_of(path)}; set {step_of(path)} or more, or another output_dir"
            )


def _find(root: Path, found: Found, names: tuple[str, ...], identity: dict[str, Any]) -> Newest:
    if found.path is None:
        _refuse_unusable(root, found)
        return Newest(found, {}, names)
    saved = json.loads((found.path / "trainer_state.json").read_text())
    _check_identity(saved["identity"], identity, found.path)
    return Newest(found, sizes_of(found.path), names)


def _refuse_unusable(root: Path, found: Found) -> None:
    """What is there and cannot be used is not the same as nothing.

    Raises:
        UserError: there are checkpoints, none of them whole, or they are gone.
    """
    remedy = (
        f"restore one, or move {root.parent} away (or set another output_dir) to start from the "
        "beginning"
    )
    if found.skipped:
        reason = found.skipped[0].removeprefix("checkpoint ")
        raise UserError(
            f"resume: none of the {len(found.skipped)} checkpoints in {root} can be used "
            f"({reason}); {remedy}"
        )
    if (root / LATEST).exists():
        named = (root / LATEST).read_text(errors="replace").strip()
        raise UserError(f"resume: {root / LATEST} names {named}, which is missing; {remedy}")


def find_newest(
    root: Path, identity: dict[str, Any], known: Newest | None = None, *, full: bool = True
) -> Newest:
    """The newest valid checkpoint below `root`, if there is one. Collective.

    Args:
        root: `output_dir/checkpoints`.
        identity: of this run.
        known: what was found before; it holds while the same checkpoints are there.
        full: compare the hashes of all files; otherwise their names and sizes alone.

    Raises:
        UserError: the checkpoint belongs to another run; or there are some, and none is valid.
    """
    names = from_main_rank("looking for checkpoints", lambda: checkpoint_names(root))
    if known is not None and known.names == names:
        return known  # hashing took its time
    found = find_newest_whole(root, full=full)
    return from_main_rank("looking for checkpoints", lambda: _find(root, found, names, identity))


def _restore(trainer: PreferenceTrainer, state: dict[str, Any]) -> None:
    """Take over a checkpoint's state.

    Raises:
        UserError: it lacks what further steps depend on.
    """
    trainer.restore(state)
    if trainer.config.precision == DELAYED and trainer.progress.step < trainer.total_steps:
        raise UserError(
            f"precision: {DELAYED} cannot go on from a checkpoint, which does not keep the "
            "history of its scales; set output_dir to another directory to begin anew"
        )


def resume(root: Path, trainer: PreferenceTrainer, known: Newest | None = None) -> list[str]:
    """Restore the newest valid checkpoint below `root`, if there is one. Collective.

    Args:
        root: `output_dir/checkpoints`.
        trainer: whose state it becomes.
        known: see `find_newest`.

    Returns:
        What to tell the user: checkpoints passed over and why, and where the run resumes.

    Raises:
        UserError: the checkpoint belongs to another run or has more steps than this one, or a rank
            does not see it.
    """
    full = trainer.config.trainer.verify_checkpoint == "full"
    newest = find_newest(root, trainer.identity, known, full=full)
    lines, path = list(newest.found.skipped), newest.found.path
    if path is not None:
        remedy = "set output_dir to a directory that all nodes share"
        on_every_rank(
            "looking for the checkpoint", lambda: wait_for_files(path, newest.sizes, remedy)
        )
        begun = time.monotonic()
        state = trainer.checkpointer.load(path)
        on_every_rank("resuming", lambda: _restore(trainer, state))
        trainer.stopping.expect_save(time.monotonic() - begun)  # it has as many bytes
        step, last = trainer.progress.step, trainer.total_steps
        lines.append(f"resumed {path.name}: {step} of {last} steps")
        seconds = {"look and hash": newest.found.seconds, **trainer.checkpointer.timings}
        whole = sum(seconds.values())
        lines.append(f"checkpoint {path.name} read: {whole:.1f} s ({told(seconds)})")
    return lines
