"""Checkpoints: megatron's distributed format, written aside, verified, moved into place.

Layout of `output_dir/checkpoints/step_00000040/`:

    dist/               weights and optimizer, loadable under any TP and PP
    model_config.json   the architecture, and hf_assets/ (tokenizer and configs): all that an
    hf_assets/          export needs
    trainer_state.json  step, scheduler, data position, query ledger bits, random-number layout
    rng/                generator states, one file a rank
    manifest.json       sizes and SHA-256 of all of the above; written last
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from safetensors.torch import load_file

from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.control.world import rank_and_size
from nemo_gdpo.conversion.formats.dist_reader import check_dist_checkpoint
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.manifest import Listed, read_manifest, why_incomplete
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.weights import DIST, OPTIMIZER_METADATA, fill_weights, trained_weights
from nemo_gdpo.training.checkpoint_check import why_damaged_together
from nemo_gdpo.training.checkpoint_save import (
    LATEST,
    STATE,
    WRITE,
    CheckpointError,
    Saving,
    rng_file,
    timed,
    told,
)
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.optimizer import with_own_settings

__all__ = [
    "LATEST",
    "CheckpointError",
    "Checkpointer",
    "Found",
    "find_newest_whole",
    "newest_trainer_state",
    "step_directory",
]
READING = "reading the checkpoint"
"""Stage, as errors name it."""
REQUIRED = (STATE,)
"""What a manifest has to list."""
_GATHERED = "optimizer.state."
"""Tensors of the distributed optimizer's state, which megatron gathers anew for each checkpoint."""


@dataclass(frozen=True)
class Found:
    """The newest complete checkpoint, and those that were skipped."""

    path: Path | None
    skipped: tuple[str, ...]
    """One line for every newer checkpoint that is incomplete: which, and why."""
    seconds: float = 0.0
    """Time that looking took, and reading all of it."""


def step_directory(root: Path, step: int) -> Path:
    """Path of the checkpoint of a step."""
    return root / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """Step of the checkpoint at a path."""
    return int(path.name.removeprefix("step_"))


def _candidates(root: Path) -> list[Path]:
    found = [p for p in root.glob("step_*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def checkpoint_names(root: Path) -> tuple[str, ...]:
    """Names of all checkpoints below `root`, whole or not, the newest first."""
    return tuple(path.name for path in _candidates(root))


def _newest(root: Path, why_not: Callable[[Path], str | None]) -> Found:
    skipped: list[str] = []
    for path in _candidates(root):
        reason = why_not(path)
        if reason is None:
            return Found(path, tuple(skipped))
        skipped.append(f"checkpoint {path.name} skipped: {reason}")
    return Found(None, tuple(skipped))


def find_newest_whole(root: Path, *, full: bool = True) -> Found:
    """The newest complete checkpoint below `root`; the ranks share its reading. Collective.

    Args:
        root: `output_dir/checkpoints`.
        full: compare the hashes of all files; otherwise their names and sizes alone.

    Raises:
        UserError: a rank does not see it.
        RunError: it cannot be read.
    """
    begun, damaged = time.perf_counter(), dict[str, str]()

    def look() -> tuple[Found, dict[str, Listed]]:
        found = _newest(root, lambda path: damaged.get(path.name) or why_incomplete(path, REQUIRED))
        return found, {} if found.path is None else read_manifest(found.path)

    while True:
        found, files = from_main_rank("looking for checkpoints", look)
        reason = None
        if found.path is not None and full:
            reason = why_damaged_together(found.path, files)
        if found.path is None or reason is None:
            return Found(found.path, found.skipped, time.perf_counter() - begun)
        damaged[found.path.name] = reason


def newest_trainer_state(root: Path) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint whose trainer state can be read, and that state.

    Nothing else of it is looked at: this tells whose checkpoints these are, not whether they are
    complete.
    """
    for path in _candidates(root):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(state, dict) and "identity" in state:
            return path, state
    return None, {}


def _looks_whole(path: Path) -> bool:
    try:
        return why_incomplete(path, REQUIRED) is None
    except OSError:
        return False


def _can_be_read(path: Path, files: Mapping[str, Listed]) -> bool:
    """Whether the files are as they were written. Collective."""
    try:
        return why_damaged_together(path, files) is None
    except (UserError, RunError):  # on all ranks alike: the run does not need it
        return False


def _prepare_torch_adam(optimizer: Any) -> None:
    """Make a fresh torch Adam under the distributed optimizer ready to be loaded into.

    Megatron reads the number of steps out of Adam's state, which a fresh one does not have yet; and
    once it is there, it looks for a `step` beside each parameter's moments, where none is stored.
    """
    for inner in optimizer.chained_optimizers:
        adam = inner.optimizer
        if not isinstance(inner, DistributedOptimizer) or not isinstance(adam, torch.optim.Adam):
            continue
        for group in adam.param_groups:
            for parameter in group["params"]:
                if not adam.state[parameter]:
                    adam.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        fill = inner._set_main_param_and_optimizer_states

        def fill_without_step(
            parameter: Any, tensors: dict[str, Any], fill: Callable[..., None] = fill
        ) -> None:
            fill(parameter, {"step": None, **tensors})

        inner._set_main_param_and_optimizer_states = fill_without_step


def _split_step_tensors(optimizer: Any) -> None:
    """Give every parameter its own Adam `step` again.

    After a load, megatron hands one tensor to all parameters of torch's Adam; each of them then
    adds 1 to it in every iteration.
    """
    for inner in optimizer.chained_optimizers:
        for state in inner.optimizer.state.values():
            step = state.get("step")
            if isinstance(step, torch.Tensor):
                state["step"] = step.detach().clone()


class Checkpointer:
    """Saves and restores one run."""

    def __init__(
        self,
        root: Path,
        model: PreferenceModel,
        optimizer: Any,
        mesh: Mesh,
        *,
        write_assets: Callable[[Path], None],
        keep: int,
        in_background: bool = False,
        full_check: bool = True,
    ) -> None:
        """Bind the run's parts.

        Args:
            root: `output_dir/checkpoints`.
            model: the policy.
            optimizer: megatron's.
            mesh: this rank's place.
            write_assets: writes model_config.json and hf_assets/ into a checkpoint directory.
            keep: how many checkpoints to keep; older ones go once a newer one is complete.
            in_background: training goes on while one is written.
            full_check: hash checkpoints of earlier runs before older ones go for them.
        """
        self.root = root
        self._model = model
        self._optimizer = optimizer
        self._mesh = mesh
        self._write_assets = write_assets
        self._keep = keep
        self._in_background = in_background
        self._full_check = full_check
        self._saving: Saving | None = None
        """The one that is being written in the background."""
        self._is_whole: dict[str, bool] = {}
        """By the names of checkpoints: what is known of them. The same on all ranks."""
        self.timings: dict[str, float] = {}
        """Stage -> seconds on this rank, of the checkpoint that was written last."""
        self.stood_still = 0.0
        """Seconds of them in which training stood still."""

    # -- saving --------------------------------------------------------------------------------

    def save(self, step: int, trainer_state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`. Collective.

        In the background, it is there after a later `poll` or `finish`; one that is still on its
        way is finished first.

        Raises:
            CheckpointError: on every rank when any rank could not write; `latest` still names the
                previous checkpoint, which is complete.
        """
        self.finish()
        saving = Saving(step_directory(self.root, step))
        with saving.whole_or_nothing():
            saving.prepare(self._write_assets, trainer_state, self._model.platform.rng_state())
            saving.stage(
                lambda: self._sharded_state(is_loading=False),
                copy=self._in_background,
                fresh=_GATHERED if self._is_gathered() else None,
            )
            saving.start()
        self._saving = saving
        if not self._in_background:
            self.finish()
        return saving.final

    def poll(self) -> None:
        """Between two steps: put in its place what every rank has written by now. Collective.

        Raises:
            CheckpointError: see `save`.
        """
        if self._saving is not None and self._saving.is_written():
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written, and put it in its place. Collective.

        Raises:
            CheckpointError: see `save`.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        with saving.whole_or_nothing():
            saving.publish()
        self._is_whole[saving.final.name] = True
        self._remove_older_than(saving.final)
        self._report(saving)

    def __enter__(self) -> Checkpointer:
        """In the block checkpoints may be on their way; at its end none is."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what is on its way, after an error as well if all ranks come here with it."""
        if self._saving is None:
            return
        if error is None:
            self.finish()
        elif _on_all_ranks(error):
            try:
                self.finish()
            except RunError as second:
                if self._mesh.is_main:
                    print(f"error: {second}", file=sys.stderr, flush=True)
        else:
            self._saving.leave()

    def _report(self, saving: Saving) -> None:
        self.timings, self.stood_still = dict(saving.seconds), sum(saving.seconds.values())
        line = f"checkpoint {saving.final.name}: {self.stood_still:.1f} s ({told(self.timings)})"
        if self._in_background:
            # The part of the writing that training did not wait for.
            behind = max(0.0, saving.background_seconds - self.timings[WRITE])
            self.timings[WRITE] += behind
            line += f", {behind:.1f} s of writing beside training"
        if self._mesh.is_main:
            print(line, flush=True)

    def _is_gathered(self) -> bool:
        return all(isinstance(o, DistributedOptimizer) for o in self._optimizer.chained_optimizers)

    # -- those before --------------------------------------------------------------------------

    def _remove_older_than(self, written: Path) -> None:
        """Keep `written` and the newest whole ones; what is older than those goes. Collective.

        One that is damaged is never a reason for another to go. Of those that this run has neither
        written nor read nothing is known: they are looked at, before an older one goes for them.
        """
        while True:
            unknown, files = from_main_rank(
                "removing older checkpoints", lambda: self._remove_or_ask(written)
            )
            if unknown is None:
                return
            self._is_whole[unknown.name] = not self._full_check or _can_be_read(unknown, files)

    def _remove_or_ask(self, written: Path) -> tuple[Path | None, Mapping[str, Listed]]:
        """Remove what is too old; or a checkpoint that has to be looked at, and its files."""
        kept, others = [written], [p for p in _candidates(self.root) if p != written]
        for path in others:
            if len(kept) == self._keep or len(others) < self._keep:
                break
            if not _looks_whole(path):
                continue
            if path.name not in self._is_whole:
                return path, read_manifest(path)
            if self._is_whole[path.name]:
                kept.append(path)
        if len(kept) == self._keep:
            oldest = min(step_of(path) for path in kept)
            for path in others:
                if step_of(path) < oldest:
                    shutil.rmtree(path, ignore_errors=True)
        return None, {}

    def _sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        model_state = trained_weights(self._model)
        optimizer_state = self._optimizer.sharded_state_dict(
            model_state, is_loading=is_loading, metadata=dict(OPTIMIZER_METADATA)
        )
        if optimizer_state.get("param_state", {}) is None:
            # Another rank has gathered it; here it would be taken for a value that ranks differ in.
            del optimizer_state["param_state"]
        return {"model": model_state, "optimizer": optimizer_state}

    # -- loading -------------------------------------------------------------------------------

    def newest(self, step: int) -> Path:
        """Path of the checkpoint of `step`."""
        return step_directory(self.root, step)

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Restore weights, optimizer, generators from a complete checkpoint; return trainer state.

        Generator states are restored when the world has the same size and the seed is the same;
        otherwise they begin at the seed (training itself draws nothing: there is no dropout).
        """
        self.timings = {}
        with timed(self.timings, "check"):
            on_every_rank(READING, lambda: check_dist_checkpoint(checkpoint / DIST))
        with timed(self.timings, "tensors"):
            on_every_rank(READING, lambda: self._load_sharded(checkpoint))
        with timed(self.timings, "state"):
            state = on_every_rank("reading the state", lambda: self._load_own(checkpoint))
        self._is_whole[checkpoint.name] = True
        return state

    def _load_sharded(self, checkpoint: Path) -> None:
        _prepare_torch_adam(self._optimizer)
        loaded = dist_checkpointing.load(
            self._sharded_state(is_loading=True), str(checkpoint / DIST)
        )
        has_adapters = self._model.adapter is not None
        fill_weights(self._model, loaded["model"], of_adapters=has_adapters)
        with_own_settings(loaded["optimizer"], self._model.config.optim)
        self._optimizer.load_state_dict(loaded["optimizer"])
        _split_step_tensors(self._optimizer)

    def _load_own(self, checkpoint: Path) -> dict[str, Any]:
        """The trainer state; this rank's generators are restored."""
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        seed = self._model.config.seed
        if (
            state["world_size"] == self._mesh.world_size
            and state.get("identity", {}).get("seed", seed) == seed
        ):
            path = checkpoint / rng_file(self._mesh.rank)
            self._model.platform.set_rng_state(load_file(path))
        return state


def _on_all_ranks(error: BaseException) -> bool:
    """Whether every rank has this error, and comes where this one is."""
    if rank_and_size()[1] == 1:
        return isinstance(error, Exception)
    return isinstance(error, UserError | RunError) and error.agreed
