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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from safetensors.torch import load_file, save_file

from nemo_gdpo.control import from_main_rank, gathered, on_every_rank
from nemo_gdpo.control.failure import describe
from nemo_gdpo.conversion.formats.dist_reader import check_dist_checkpoint
from nemo_gdpo.errors import RunError
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.late import wait_for_files
from nemo_gdpo.io.manifest import describe as describe_files
from nemo_gdpo.io.manifest import list_files, why_invalid, write_manifest
from nemo_gdpo.io.staged import StagedDirectory, stage
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.weights import (
    DIST,
    OPTIMIZER_METADATA,
    fill_weights,
    save_sharded,
    sharded_weights,
)
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.optimizer import with_own_settings

T = TypeVar("T")
LATEST = "latest"
RNG = "rng"
READING = "reading the checkpoint"
"""Stage, as errors name it."""
SHARE = "set output_dir to a directory that all nodes share"


class CheckpointError(RunError):
    """A checkpoint could not be written; the previous one is untouched."""


@dataclass(frozen=True)
class Found:
    """The newest complete checkpoint, and those that were skipped."""

    path: Path | None
    skipped: tuple[str, ...]
    """One line for every newer checkpoint that is incomplete: which, and why."""


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


def find_newest_valid(root: Path) -> Found:
    """The newest complete checkpoint below `root`."""
    skipped: list[str] = []
    for path in _candidates(root):
        reason = why_invalid(path)
        if reason is None:
            return Found(path, tuple(skipped))
        skipped.append(f"checkpoint {path.name} skipped: {reason}")
    return Found(None, tuple(skipped))


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


def _what_failed(error: BaseException, root: Path) -> str:
    """One line. Writers in separate processes report only that an OSError came."""
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    free = shutil.disk_usage(root if root.exists() else root.parent).free
    return f"{describe(error)}; {free / 2**20:.1f} MiB are free"


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
    ) -> None:
        """Bind the run's parts.

        Args:
            root: `output_dir/checkpoints`.
            model: the policy.
            optimizer: megatron's.
            mesh: this rank's place.
            write_assets: writes model_config.json and hf_assets/ into a checkpoint directory.
            keep: how many checkpoints to keep; older ones go once a newer one is complete.
        """
        self.root = root
        self._model = model
        self._optimizer = optimizer
        self._mesh = mesh
        self._write_assets = write_assets
        self._keep = keep
        self._staged: StagedDirectory | None = None
        """Directory that the main rank is writing."""

    def save(self, step: int, trainer_state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`. Collective.

        Raises:
            CheckpointError: on every rank when any rank could not write; `latest` still names the
                previous checkpoint, which is complete.
        """
        final = step_directory(self.root, step)
        try:
            temporary = self._on_main("start", lambda: self._prepare(final, trainer_state))
            self._on_every("start", lambda: self._wait_for(temporary))
            save_sharded(
                lambda: self._sharded_state(is_loading=False),
                temporary / DIST,
                partial(self._error, "write"),
                self._reason,
            )
            self._on_every("write", lambda: self._write_rng(temporary))
            described = self._describe(temporary)
            self._on_main("finish", lambda: self._publish(final, described))
        except BaseException:
            if self._staged is not None:  # a full disk should not stay full of half a checkpoint
                self._staged.discard()
            raise
        finally:
            if self._staged is not None:
                self._staged.leave()
            self._staged = None
        return final

    def _error(self, what: str, told: str) -> CheckpointError:
        return CheckpointError(
            f"could not {what} a checkpoint in {self.root} ({told}); the previous checkpoint is "
            "untouched; free space or fix the permissions, then start again"
        )

    def _reason(self, error: BaseException) -> str:
        return _what_failed(error, self.root)

    def _on_every(self, what: str, action: Callable[[], T]) -> T:
        return on_every_rank(
            f"{what} a checkpoint", action, wrap=partial(self._error, what), reason=self._reason
        )

    def _on_main(self, what: str, action: Callable[[], T]) -> T:
        return from_main_rank(
            f"{what} a checkpoint", action, wrap=partial(self._error, what), reason=self._reason
        )

    def _prepare(self, final: Path, trainer_state: dict[str, Any]) -> Path:
        """The directory that all ranks write into."""
        self._staged = stage(final, also="step_*")
        temporary = self._staged.path
        for name in (DIST, RNG):
            (temporary / name).mkdir()
        self._write_assets(temporary)
        (temporary / "trainer_state.json").write_text(json.dumps(trainer_state, indent=1) + "\n")
        return temporary

    def _sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        model_state = sharded_weights(self._model)
        optimizer_state = self._optimizer.sharded_state_dict(
            model_state, is_loading=is_loading, metadata=dict(OPTIMIZER_METADATA)
        )
        if optimizer_state.get("param_state", {}) is None:
            # Another rank has gathered it; here it would be taken for a value that ranks differ in.
            del optimizer_state["param_state"]
        return {"model": model_state, "optimizer": optimizer_state}

    @staticmethod
    def _wait_for(temporary: Path) -> None:
        for name in (DIST, RNG):
            wait_for_files(temporary / name, {}, SHARE)

    def _write_rng(self, temporary: Path) -> None:
        state = {k: v.clone() for k, v in self._model.platform.rng_state().items()}
        save_file(state, temporary / RNG / f"rank_{self._mesh.rank:05d}.safetensors")

    def _describe(self, temporary: Path) -> dict[str, dict[str, object]]:
        """Hash all files, shared out over the ranks.

        A network file system may show a rank late what others wrote, but not what it wrote itself:
        the list is what all of them see together, and each waits for the files of its share.
        """
        rank, size = self._mesh.rank, self._mesh.world_size
        seen = self._on_every(
            "finish", lambda: {n: (temporary / n).stat().st_size for n in list_files(temporary)}
        )
        sizes: dict[str, int] = {}
        for part in gathered(seen):
            for name, found in part.items():
                sizes[name] = max(found, sizes.get(name, 0))  # the writer's own is the greatest
        mine = {name: sizes[name] for name in sorted(sizes)[rank::size]}

        def hash_mine() -> dict[str, dict[str, object]]:
            wait_for_files(temporary, mine if rank else sizes, SHARE)
            return describe_files(temporary, mine)

        parts = gathered(self._on_every("finish", hash_mine))
        return {name: entry for part in parts for name, entry in part.items()}

    def _publish(self, final: Path, described: dict[str, dict[str, object]]) -> None:
        assert self._staged is not None
        write_manifest(self._staged.path, described)
        self._staged.publish(replace=True)
        write_file(self.root / LATEST, final.name + "\n")
        # Last, so that a failed write never costs an older checkpoint.
        for old in _candidates(self.root)[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, step: int) -> Path:
        """Path of the checkpoint of `step`."""
        return step_directory(self.root, step)

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Restore weights, optimizer, generators from a complete checkpoint; return trainer state.

        Generator states are restored when the world has the same size and the seed is the same;
        otherwise they begin at the seed (training itself draws nothing: there is no dropout).
        """
        on_every_rank(READING, lambda: check_dist_checkpoint(checkpoint / DIST))
        on_every_rank(READING, lambda: self._load_sharded(checkpoint))
        return on_every_rank("reading the state", lambda: self._load_own(checkpoint))

    def _load_sharded(self, checkpoint: Path) -> None:
        _prepare_torch_adam(self._optimizer)
        loaded = dist_checkpointing.load(
            self._sharded_state(is_loading=True), str(checkpoint / DIST)
        )
        fill_weights(self._model, loaded["model"])
        with_own_settings(loaded["optimizer"], self._model.config.optim)
        self._optimizer.load_state_dict(loaded["optimizer"])
        _split_step_tensors(self._optimizer)

    def _load_own(self, checkpoint: Path) -> dict[str, Any]:
        """The trainer state; this rank's generators are restored."""
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
        seed = self._model.config.seed
        if (
            state["world_size"] == self._mesh.world_size
            and state.get("identity", {}).get("seed", seed) == seed
        ):
            path = checkpoint / RNG / f"rank_{self._mesh.rank:05d}.safetensors"
            self._model.platform.set_rng_state(load_file(path))
        return state
