"""Started again after a hard stop, a run goes on in the same place, and no step is there twice."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.training import LoggerConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.training import loggers
from nemo_gdpo.training.loggers import MetricsLog
from nemo_gdpo.training.trackers import Place
from tests.support import mlflow_stand_in
from tests.training.test_loggers import _wandb_records

SETTINGS = {"seed": 7, "optim": {"lr": 1e-6, "betas": [0.9, 0.95]}}


def entry(step: int, *, second: bool = False) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 - 0.1 * step, "start": 2.0 if second else 1.0}


def killed_and_resumed(config: LoggerConfig, folder: Path) -> None:
    """Steps 0 to 4, then no end; from the checkpoint of step 3 on again, to step 6."""
    first = MetricsLog(config, folder, enabled=True, resume_step=0, settings=SETTINGS)
    for step in range(5):
        first.write(entry(step))
    # A killed process writes nothing more; what its writers had taken reaches the disk here.
    first._close_trackers(failed=True)
    with MetricsLog(config, folder, enabled=True, resume_step=3, settings=SETTINGS) as second:
        for step in range(3, 7):
            second.write(entry(step, second=True))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["start"]) for line in lines] == [
        *((step, 1.0) for step in range(3)),
        *((step, 2.0) for step in range(3, 7)),
    ]
    aside = (folder / "metrics.superseded.jsonl").read_text().splitlines()
    assert [(json.loads(text)["step"], json.loads(text)["start"]) for text in aside] == [
        (3, 1.0),
        (4, 1.0),
    ]


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed(LoggerConfig(), tmp_path)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("start")] == [
        *((step, 1.0) for step in range(3)),
        *((step, 2.0) for step in range(3, 7)),
    ]


def test_tensorboard_of_a_run_that_begins_again(tmp_path: Path) -> None:
    """Killed before its first checkpoint: all of it comes again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (1.0, 2.0):
        log = MetricsLog(LoggerConfig(), tmp_path, enabled=True, resume_step=0)
        for step in range(3):
            log.write(entry(step) | {"start": start})
        log._close_trackers(failed=True)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("start")] == [(0, 2.0), (1, 2.0), (2, 2.0)]


def _wandb_runs(folder: Path) -> tuple[set[str], list[int], dict[str, str]]:
    """(ids of runs, steps of their history, the configuration) in all files below `folder`."""
    from wandb.proto import wandb_internal_pb2

    ids, steps, config = set(), [], {}
    for file in sorted(folder.rglob("run-*.wandb")):
        for data in _wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {item.key: item.value_json for item in record.run.config.update}
            if record.HasField("history"):
                steps += [
                    int(item.value_json)
                    for item in record.history.item
                    if item.key == "_step" or list(item.nested_key) == ["_step"]
                ]
    return ids, steps, config


def test_wandb_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    killed_and_resumed(LoggerConfig(tensorboard=False, wandb=True), tmp_path)
    ids, steps, config = _wandb_runs(tmp_path)
    assert ids == {(tmp_path / "logs" / "wandb_run_id").read_text().strip()}
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 2
    assert sorted(steps) == list(range(7))
    assert config["seed"] == "7"


def test_wandb_that_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    killed_and_resumed(LoggerConfig(tensorboard=False, wandb=True), tmp_path)
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """mlflow if it is installed, else what stands in for it."""
    if importlib.util.find_spec("mlflow") is None:
        for name, module in mlflow_stand_in.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow

    return mlflow


def test_mlflow_has_the_signatures_that_are_called(mlflow: Any) -> None:
    for name, parameters in mlflow_stand_in.SIGNATURES.items():
        found = inspect.signature(getattr(mlflow.MlflowClient, name))
        assert list(found.parameters) == parameters, name


def test_mlflow_goes_on_in_its_run(tmp_path: Path, mlflow: Any) -> None:
    killed_and_resumed(LoggerConfig(tensorboard=False, mlflow=True), tmp_path)
    run_id = (tmp_path / "logs" / "mlflow_run_id").read_text().strip()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "logs" / "mlflow").as_uri())
    history = client.get_metric_history(run_id, "start")
    # It says itself what it has: nothing is there twice, and nothing is missing.
    assert [(m.step, m.value) for m in history] == [
        *((step, 1.0) for step in range(5)),
        (5, 2.0),
        (6, 2.0),
    ]
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", tmp_path.name)
    assert run.data.params["optim.lr"] == "1e-06"
    assert run.data.params["seed"] == "7"


class Failing:
    """A tracker whose service is gone after the first step."""

    def __init__(self, config: LoggerConfig, place: Place) -> None:
        self.taken: list[int] = []

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.taken.append(step)
        if step == 1:
            raise ConnectionError("the service is gone\nfor good")

    def flush(self) -> None:
        self.taken.append(-1)

    def close(self, *, failed: bool) -> None:
        raise ConnectionError("still gone")


def test_a_service_that_fails_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Failing] = []

    def make(config: LoggerConfig, place: Place) -> Failing:
        made.append(Failing(config, place))
        return made[-1]

    monkeypatch.setattr(loggers, "WeightsAndBiases", make)
    config = LoggerConfig(tensorboard=False, wandb=True)
    with MetricsLog(config, tmp_path, enabled=True, resume_step=0) as log:
        for step in range(4):
            log.write(entry(step))
    assert made[0].taken == [0, 1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert capsys.readouterr().err == (
        "nemo-gdpo: logger.wandb: failed (ConnectionError: the service is gone); training goes on "
        "without it\n"
    )
    with MetricsLog(config, tmp_path, enabled=True, resume_step=4):
        pass
    assert "did not end well (ConnectionError: still gone)" in capsys.readouterr().err


def _refuse(config: LoggerConfig, place: Place) -> Failing:
    raise TimeoutError("no answer within 90 s")


def test_a_service_that_cannot_start_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    monkeypatch.setattr(loggers, "WeightsAndBiases", _refuse)
    config = LoggerConfig(tensorboard=False, wandb=True)
    with pytest.raises(UserError, match=r"logger\.wandb=true, but it cannot start \(TimeoutError"):
        MetricsLog(config, tmp_path, enabled=True, resume_step=0)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_a_requeued_run_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers, "WeightsAndBiases", _refuse)
    config = LoggerConfig(tensorboard=False, wandb=True)
    with MetricsLog(config, tmp_path, enabled=True, resume_step=3) as log:
        log.write(entry(3))
    assert "goes on without it" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 3
