"""The part of mlflow's client that trackers call, kept in memory: mlflow is in no lock.

Parameters are those of mlflow-skinny 3.17.2 (mlflow/tracking/client.py, mlflow/entities/metric.py,
param.py); `SIGNATURES` has them for comparison with an mlflow that is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

SIGNATURES = {
    "get_experiment_by_name": ["self", "name"],
    "create_experiment": ["self", "name", "artifact_location", "tags"],
    "create_run": ["self", "experiment_id", "start_time", "tags", "run_name"],
    "update_run": ["self", "run_id", "status", "name"],
    "log_batch": ["self", "run_id", "metrics", "params", "tags", "synchronous"],
    "get_metric_history": ["self", "run_id", "key"],
    "get_run": ["self", "run_id"],
    "set_terminated": ["self", "run_id", "status", "end_time"],
}


class Metric:
    """One value at one step."""

    def __init__(self, key: str, value: float, timestamp: int, step: int) -> None:
        self.key, self.value, self.timestamp, self.step = key, value, timestamp, step


class Param:
    """One setting."""

    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value


@dataclass
class _Run:
    run_id: str
    run_name: str | None
    status: str = "RUNNING"
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)


@dataclass
class _Store:
    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, _Run] = field(default_factory=dict)


class MlflowClient:
    """A client of stores that live as long as this process."""

    stores: ClassVar[dict[str | None, _Store]] = {}

    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        workspace_store_uri: str | None = None,
    ) -> None:
        self._store = self.stores.setdefault(tracking_uri, _Store())

    def get_experiment_by_name(self, name: str) -> Any:
        found = self._store.experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(
        self,
        name: str,
        artifact_location: str | None = None,
        tags: dict[str, Any] | None = None,
    ) -> str:
        return self._store.experiments.setdefault(name, f"experiment of {name}")

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Any:
        assert experiment_id in self._store.experiments.values()
        run = _Run(f"run{len(self._store.runs)}", run_name)
        self._store.runs[run.run_id] = run
        return self.get_run(run.run_id)

    def get_run(self, run_id: str) -> Any:
        run = self._store.runs[run_id]
        info = SimpleNamespace(run_id=run_id, status=run.status, run_name=run.run_name)
        return SimpleNamespace(info=info, data=SimpleNamespace(params=run.params))

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        self._store.runs[run_id].status = status or self._store.runs[run_id].status

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[Any] = (),
        synchronous: bool | None = None,
    ) -> None:
        run = self._store.runs[run_id]
        assert len(params) <= 100
        run.metrics += metrics
        run.params |= {param.key: param.value for param in params}

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [metric for metric in self._store.runs[run_id].metrics if metric.key == key]

    def set_terminated(
        self, run_id: str, status: str | None = None, end_time: int | None = None
    ) -> None:
        self._store.runs[run_id].status = status or "FINISHED"


def modules() -> Mapping[str, ModuleType]:
    """The modules to put into `sys.modules`."""
    entities = ModuleType("mlflow.entities")
    vars(entities).update(Metric=Metric, Param=Param)
    mlflow = ModuleType("mlflow")
    vars(mlflow).update(
        MlflowClient=MlflowClient, entities=entities, __spec__=sys.__spec__, __path__=[]
    )
    return {"mlflow": mlflow, "mlflow.entities": entities}
