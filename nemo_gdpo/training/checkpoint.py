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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from nemo_gdpo.conversion.formats.dist_reader import check_dist_checkpoint
from nemo_gdpo.errors import RunError
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.manifest import describe, list_files, why_invalid, write_manifest
from nemo_gdpo.io.staged import StagedDirectory, stage
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.weights import (
    OPTIMIZER_METADATA,
    SHARDING_METADATA,
    fill_weights,
    sharded_weights,
)
from nemo_gdpo.training.mesh import Mesh

LATEST = "latest"


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


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _candidates(root: Path) -> list[Path]:
    found = [p for p in root.glob("step_*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=_step_of, reverse=True)


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
    causes = (
        [str(cause) for cause, _ in error.failures.values()]
        if isinstance(error, CheckpointException)
        else [str(error)]
    )
    lines = [line for cause in causes for line in cause.splitlines() if line.strip()]
    free = shutil.disk_usage(root if root.exists() else root.parent).free
    told = lines[0] if lines else "no reason given"
    return f"{type(error).__name__}: {told}; {free / 2**20:.1f} MiB are free"


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
            self._all_or_none(lambda: self._prepare(final, trainer_state), "start")
            temporary = self._shared_path()
            self._all_or_none(lambda: self._write_dist(temporary), "write")
            self._all_or_none(lambda: self._write_rng(temporary), "write")
            described = self._describe(temporary)
            self._all_or_none(lambda: self._publish(final, described), "finish")
        except CheckpointError:
            if self._staged is not None:  # a full disk should not stay full of half a checkpoint
                self._staged.discard()
            raise
        finally:
            if self._staged is not None:
                self._staged.leave()
            self._staged = None
        return final

    def _all_or_none(self, action: Callable[[], None], what: str) -> None:
        """Run `action` here; raise everywhere if it failed anywhere, before anyone continues."""
        reason = ""
        try:
            action()
        except (Exception, CheckpointException) as error:  # noqa: BLE001 - writers raise anything
            # torch.save on a full disk raises RuntimeError, safetensors its own subclass, and
            # torch's collective writer something that is not an Exception.
            reason = f"rank {self._mesh.rank}: {_what_failed(error, self.root)}"
        reasons: list[str] = [""] * self._mesh.world_size
        dist.all_gather_object(reasons, reason)
        failed = [r for r in reasons if r]
        if failed:
            raise CheckpointError(
                f"could not {what} a checkpoint in {self.root} ({failed[0]}); the previous "
                "checkpoint is untouched; free space or fix the permissions, then start again"
            )

    def _prepare(self, final: Path, trainer_state: dict[str, Any]) -> None:
        if not self._mesh.is_main:
            return
        self._staged = stage(final, also="step_*")
        temporary = self._staged.path
        (temporary / "dist").mkdir()
        (temporary / "rng").mkdir()
        self._write_assets(temporary)
        (temporary / "trainer_state.json").write_text(json.dumps(trainer_state, indent=1) + "\n")

    def _shared_path(self) -> Path:
        """Directory that all ranks write into: the main rank's staged one."""
        path = [None if self._staged is None else self._staged.path]
        dist.broadcast_object_list(path, src=0)
        assert path[0] is not None
        return path[0]

    def _sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        model_state = sharded_weights(self._model)
        optimizer_state = self._optimizer.sharded_state_dict(
            model_state, is_loading=is_loading, metadata=dict(OPTIMIZER_METADATA)
        )
        if optimizer_state.get("param_state", {}) is None:
            # Another rank has gathered it; here it would be taken for a value that ranks differ in.
            del optimizer_state["param_state"]
        return {"model": model_state, "optimizer": optimizer_state}

    def _write_dist(self, temporary: Path) -> None:
        dist_checkpointing.save(
            self._sharded_state(is_loading=False),
            str(temporary / "dist"),
            content_metadata=dict(SHARDING_METADATA),
        )

    def _write_rng(self, temporary: Path) -> None:
        state = {k: v.clone() for k, v in self._model.platform.rng_state().items()}
        save_file(state, temporary / "rng" / f"rank_{self._mesh.rank:05d}.safetensors")

    def _describe(self, temporary: Path) -> dict[str, dict[str, object]]:
        """Hash all files, shared out over the ranks."""
        dist.barrier()
        names = list_files(temporary)
        mine = describe(temporary, names[self._mesh.rank :: self._mesh.world_size])
        parts: list[Any] = [None] * self._mesh.world_size
        dist.all_gather_object(parts, mine)
        return {name: entry for part in parts for name, entry in part.items()}

    def _publish(self, final: Path, described: dict[str, dict[str, object]]) -> None:
        if self._staged is None:
            return
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

        Generator states are restored when the world has the same size; a resharded run draws from
        its seed again (training itself draws nothing: there is no dropout).
        """
        check_dist_checkpoint(checkpoint / "dist")
        _prepare_torch_adam(self._optimizer)
        loaded = dist_checkpointing.load(
            self._sharded_state(is_loading=True), str(checkpoint / "dist")
        )
        fill_weights(self._model, loaded["model"])
        self._optimizer.load_state_dict(loaded["optimizer"])
        _split_step_tensors(self._optimizer)
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
        if state["world_size"] == self._mesh.world_size:
            path = checkpoint / "rng" / f"rank_{self._mesh.rank:05d}.safetensors"
            self._model.platform.set_rng_state(load_file(path))
        return state
