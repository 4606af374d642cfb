"""TensorBoard and Weights & Biases really hold what was logged, read back by their own readers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from nemo_gdpo.config.training import LoggerConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.training.loggers import MetricsLog


def _config(*, tensorboard: bool, wandb: bool) -> LoggerConfig:
    return LoggerConfig(
        tensorboard=tensorboard, wandb=wandb, wandb_project="aligned" if wandb else None
    )


BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7


def _wandb_records(file: Path) -> list[bytes]:
    """The records of a run file: LevelDB's log format after a header of seven bytes."""
    data, position = file.read_bytes(), FILE_HEADER
    records, whole = [], b""
    while position + RECORD_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]  # 1 whole, 2 first, 3 middle, 4 last
        start = position + RECORD_HEADER
        whole += data[start : start + length]
        position = start + length
        if kind in (1, 4):
            records.append(whole)
            whole = b""
    return records


def _wandb_losses(file: Path) -> list[float]:
    from wandb.proto import wandb_internal_pb2

    losses = []
    for data in _wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            if item.key == "loss" or list(item.nested_key) == ["loss"]:
                losses.append(json.loads(item.value_json))
    return losses


def test_both_loggers_hold_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = _config(tensorboard=True, wandb=True)
    with MetricsLog(config, tmp_path, enabled=True, resume_step=0) as log:
        for step in range(3):
            log.write({"step": step, "loss": 0.5 - 0.1 * step, "rewards/margins": 0.1 * step})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert scalars == [(0, pytest.approx(0.5)), (1, pytest.approx(0.4)), (2, pytest.approx(0.3))]
    (run,) = tmp_path.rglob("run-*.wandb")
    deadline = time.monotonic() + 20.0  # its service flushes in its own time
    while len(_wandb_losses(run)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _wandb_losses(run) == [pytest.approx(0.5), pytest.approx(0.4), pytest.approx(0.3)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_wandb_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        MetricsLog(_config(tensorboard=False, wandb=True), tmp_path, enabled=True, resume_step=0)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    config = _config(tensorboard=True, wandb=False)
    with MetricsLog(config, tmp_path, enabled=False, resume_step=0) as log:
        log.write({"step": 0, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []
