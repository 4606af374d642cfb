"""Where the numbers of a run go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.

A run that is started again goes on in the same place: the service's id is kept below
`output_dir/logs`. After a hard stop some steps are computed again; none is there twice afterwards.
What each holds already it says itself where it can, and `metrics.jsonl` says it where not.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nemo_gdpo.config.checks_settings import wandb_can_log_in
from nemo_gdpo.config.training import LoggerConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_file

EXPERIMENT = "nemo_gdpo"
"""MLflow's experiment where none is named."""
MLFLOW_URI = "MLFLOW_TRACKING_URI"
MLFLOW_FILES = "MLFLOW_ALLOW_FILE_STORE"
"""MLflow refuses its file store unless this says otherwise. It is the right one here: the other,
SQLite, needs locks that a cluster's file systems may not have."""


@dataclass(frozen=True)
class Place:
    """Where a run stands when its trackers are opened."""

    logs: Path
    """`output_dir/logs`."""
    name: str
    """Of the run, where the configuration has none."""
    resume_step: int
    """The first step to come."""
    logged: int
    """Steps that `metrics.jsonl` had when the run was started: some of them come again."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's configuration, plain and nested."""


class Tracker(Protocol):
    """One place that the numbers go to."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step."""

    def flush(self) -> None:
        """Write what was taken: a checkpoint follows, and its steps do not come again."""

    def close(self, *, failed: bool) -> None:
        """End, once all that was taken is written."""


def _kept_id(file: Path, make: Callable[[], str]) -> str:
    """The id in a file; a new one is made and put there where there is none."""
    if file.is_file():
        found = file.read_text(encoding="utf-8").strip()
        if found:
            return found
    made = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, f"{made}\n")
    return made


class TensorBoard:
    """Event files, one a start of the run."""

    def __init__(self, config: LoggerConfig, place: Place) -> None:
        """Begin a file; it hides what older ones have from the first step on that comes again."""
        del config
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(place.logs), purge_step=place.resume_step)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what waits, for up to two minutes otherwise."""
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        del failed
        self._writer.close()


class WeightsAndBiases:
    """A run of the service, or of its files (WANDB_MODE=offline)."""

    def __init__(self, config: LoggerConfig, place: Place) -> None:
        """Begin a run, or go on with the one whose id is kept.

        Raises:
            UserError: nothing can log in.
        """
        if not wandb_can_log_in():
            raise UserError(
                "logger.wandb=true, but no key was found: export WANDB_API_KEY, or "
                "WANDB_MODE=offline, or set logger.wandb=false"
            )
        import wandb

        def new_id() -> str:
            return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)

        place.logs.mkdir(parents=True, exist_ok=True)
        # It reads the variable once a process, which may have several runs.
        mode: Any = os.environ.get("WANDB_MODE")
        self._run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_name or place.name,
            dir=str(place.logs),
            id=_kept_id(place.logs / "wandb_run_id", new_id),
            # Goes on with the run if the service has it, which "must" would ask of a first start
            # and of offline runs that nobody has uploaded yet.
            resume="allow",
            mode=mode,
            config=dict(place.settings),
            allow_val_change=True,
        )
        self._first = self._first_missing(place)

    def _first_missing(self, place: Place) -> int:
        """The first step that the run does not have. The service says it; files do not."""
        if self._run.disabled:
            return 0
        return place.logged if self._run.offline else self._run.step

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step, unless the run has them: its steps only rise."""
        if step >= self._first:
            self._run.log(dict(numbers), step=step)

    def flush(self) -> None:
        """Do nothing: its service is a process of its own, which outlives this one."""

    def close(self, *, failed: bool) -> None:
        """Wait for its service to write what it was sent: the process may end right after."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run in MLflow's file store or on its server."""

    def __init__(self, config: LoggerConfig, place: Place) -> None:
        """Begin a run, or go on with the one whose id is kept."""
        uri = config.mlflow_tracking_uri or os.environ.get(MLFLOW_URI)
        if uri is None:
            uri = (place.logs / "mlflow").absolute().as_uri()
        if uri.startswith("file:") or "://" not in uri:
            os.environ.setdefault(MLFLOW_FILES, "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=uri)
        file = place.logs / "mlflow_run_id"
        is_new = not file.is_file()
        self._run_id = _kept_id(file, lambda: self._begin(config, place))
        if is_new:
            self._log_settings(place.settings, Param)
        else:
            self._client.update_run(self._run_id, status="RUNNING")
        history = self._client.get_metric_history(self._run_id, "loss")
        self._first = max((metric.step + 1 for metric in history), default=0)

    def _begin(self, config: LoggerConfig, place: Place) -> str:
        name = config.mlflow_experiment or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=place.name)
        return str(run.info.run_id)

    def _log_settings(self, settings: Mapping[str, Any], param: Any) -> None:
        leaves = [param(key, str(value)[:500]) for key, value in _leaves(settings).items()]
        for begin in range(0, len(leaves), 100):  # what a server takes at once
            self._client.log_batch(self._run_id, params=leaves[begin : begin + 100])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step, unless the run has them."""
        if step < self._first:
            return
        now = int(time.time() * 1000)
        metrics = [self._metric(name, float(v), now, step) for name, v in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def flush(self) -> None:
        """Do nothing: all is written already."""

    def close(self, *, failed: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in node.items():
        inner = isinstance(value, Mapping)
        found |= _leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found
