"""What a run takes and leaves in its output_dir as it begins: the lock, its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_gdpo.config.composition import config_yaml
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank
from nemo_gdpo.control.alone import end_process
from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.errors import EXIT_FAILED, RunError, UserError
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.output_lock import Holder, OutputLock, hold
from nemo_gdpo.launch import rank_log
from nemo_gdpo.launch.failures import say
from nemo_gdpo.platform import Platform
from nemo_gdpo.precisions import described
from nemo_gdpo.training.clock import RunClock
from nemo_gdpo.training.datasets import Planned
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.parts import total_steps
from nemo_gdpo.training.resume import IDENTITY


def lock_output(output_dir: Path) -> OutputLock | None:
    """Hold output_dir; the lock is the main rank's. Collective.

    Raises:
        UserError: on every rank, when another job works there.
        RunError: on every rank, when it cannot be written.
    """
    held: list[OutputLock] = []
    from_main_rank(
        "locking output_dir", lambda: held.append(hold(output_dir, on_lost=end_because_taken))
    )
    return held[0] if held else None


def end_because_taken(holder: Holder) -> None:
    """End this run: what it would write from now on is another job's."""
    say(f"error: output_dir was taken over by {holder}; this job ends")
    end_process(EXIT_FAILED)


def write_record(config: RunConfig, identity: dict[str, Any], output_dir: Path) -> None:
    """Write `config.yaml` and `identity.json`, the record of the run. Collective; rank 0 writes.

    Raises:
        RunError: it cannot be written.
    """

    def write() -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_file(output_dir / "config.yaml", config_yaml(config))
        # As a checkpoint has it: an objective may hold infinity.
        write_file(output_dir / IDENTITY, json.dumps(identity, indent=1) + "\n")

    def wrap(told: str) -> RunError:
        return RunError(
            f"{output_dir}/config.yaml could not be written ({told}); free space, fix the "
            "permissions or choose another output_dir, then start again"
        )

    from_main_rank("writing config.yaml", write, wrap=wrap)


def refuse_length(config: RunConfig, train: Planned) -> None:
    """Now, not after an hour of reference computation: is there enough data, and enough to do?

    Raises:
        UserError: there is not one global batch of pairs, or nothing comes after the warm-up.
    """
    PreferenceSampler.of(config.data, train.pairs, train.fingerprint).global_batch(
        0, config.model.global_batch_size
    )
    steps, warmup = total_steps(config, train.pairs), config.optim.sched.warmup_steps
    if warmup >= steps:
        raise UserError(
            f"optim.sched.warmup_steps: {warmup} updates are not fewer than the {steps} of this "
            f"run ({train.pairs} pairs in batches of {config.model.global_batch_size}); make it "
            "smaller, or the run longer"
        )


def begin_logs(
    config: RunConfig, output_dir: Path, mesh: Mesh, platform: Platform, clock: RunClock
) -> None:
    """Keep this start in the rank's log and, on the main rank, in the record of starts."""
    logs, layout = output_dir / "logs", mesh.layout
    rank_log.open_log(
        logs,
        rank=mesh.rank,
        world_size=mesh.world_size,
        device=platform.device_name(),
        objective=config.objective.name,
        precision=described(config.precision),
        layout=f"TP{layout.tensor} PP{layout.pipeline} CP{layout.context} DP{mesh.data_size}",
    )
    if mesh.is_main:
        clock.keep_in(logs, world_size=mesh.world_size)
