"""What slurm/train.sh is told of a run: `slurm/stages.py`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from nemo_gdpo.config.composition import compose, config_yaml
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.conversion.atomic import MARKER
from nemo_gdpo.errors import UserError
from tests.support.data import pairs, write_jsonl

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "slurm"))
import stages  # noqa: E402 - a script, not a package

STEPS = 40


def config_of(output: Path, *overrides: str) -> RunConfig:
    given = [f"output_dir={output}", "model.restore_from_path=/nowhere", "data.train_path=/none"]
    return TRAIN.parse(compose([*given, *overrides], TRAIN).plain)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The last checkpoint of a run in `tmp_path`."""
    (tmp_path / "config.yaml").write_text(config_yaml(config_of(tmp_path, "trainer.num_nodes=2")))
    path = tmp_path / "checkpoints" / f"step_{STEPS:08d}"
    path.mkdir(parents=True)
    state = {"step": STEPS, "identity": {"total_steps": STEPS}}
    (path / "trainer_state.json").write_text(json.dumps(state))
    files = {"trainer_state.json": {"bytes": len(json.dumps(state)), "sha256": "any"}}
    (path / "manifest.json").write_text(json.dumps({"version": 1, "files": files}))
    (path.parent / "latest").write_text(f"{path.name}\n")
    return path


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_complete_run_is_complete_on_any_number_of_nodes(checkpoint: Path, nodes: int) -> None:
    output = checkpoint.parents[1]
    config = config_of(output, f"trainer.num_nodes={nodes}", "trainer.devices=2")
    assert stages.finished_checkpoint(config) == checkpoint


@pytest.mark.parametrize("other", ["optim.lr=1e-3", "data.train_path=/others", "objective=dpo"])
def test_a_run_with_other_settings_is_for_train_to_judge(checkpoint: Path, other: str) -> None:
    assert stages.finished_checkpoint(config_of(checkpoint.parents[1], other)) is None


def test_a_run_with_steps_left_is_not_complete(checkpoint: Path) -> None:
    state = {"step": STEPS - 1, "identity": {"total_steps": STEPS}}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    assert stages.finished_checkpoint(config_of(checkpoint.parents[1])) is None


@pytest.mark.parametrize("name", ["trainer_state.json", "manifest.json", "../latest"])
def test_a_checkpoint_with_a_lost_or_cut_file_is_not_complete(checkpoint: Path, name: str) -> None:
    config = config_of(checkpoint.parents[1])
    file = checkpoint / name
    content = file.read_text()
    file.write_text(content[:3])
    assert stages.finished_checkpoint(config) is None
    file.unlink()
    assert stages.finished_checkpoint(config) is None
    file.write_text(content)
    assert stages.finished_checkpoint(config) == checkpoint


def test_an_export_is_current_when_it_is_whole_and_newer(checkpoint: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "model.safetensors").write_bytes(b"12345")
    assert not stages.is_exported(hf, checkpoint)
    marker = {"kind": "hugging_face", "files": {"model.safetensors": 5}}
    (hf / MARKER).write_text(json.dumps(marker))
    assert stages.is_exported(hf, checkpoint)
    saved = (checkpoint / "manifest.json").stat().st_mtime
    os.utime(hf / MARKER, (saved - 10, saved - 10))  # of an earlier checkpoint
    assert not stages.is_exported(hf, checkpoint)
    os.utime(hf / MARKER)
    (hf / "model.safetensors").write_bytes(b"1234")
    assert not stages.is_exported(hf, checkpoint)


def test_prompts_are_the_first_distinct_ones_of_the_validation_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PROMPTS", 3)
    rows = pairs(5)
    rows[1]["prompt"] = rows[0]["prompt"]
    path = write_jsonl(tmp_path / "validation.jsonl", rows)
    config = config_of(tmp_path, f"data.validation_path={path}")
    target = stages.prompts_of(config)
    assert target == tmp_path / "prompts.jsonl"
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert found == [{"id": rows[n]["id"], "prompt": rows[n]["prompt"]} for n in (0, 2, 3)]
    target.write_text("mine\n")
    assert stages.prompts_of(config) == target
    assert target.read_text() == "mine\n"


def test_there_may_be_no_prompts(tmp_path: Path) -> None:
    assert stages.prompts_of(config_of(tmp_path)) is None
    assert not list(tmp_path.iterdir())


def test_gpus_that_torch_does_not_see_are_refused() -> None:
    """Eight ranks would train an 8B model on the CPUs of a node without a driver."""
    stages.check_gpus(0)
    with pytest.raises(UserError, match=r"the job has 9999 GPUs on this node and torch sees \d"):
        stages.check_gpus(9999)


def test_the_lines(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    output = checkpoint.parents[1]
    overrides = [f"output_dir={output}", "model.restore_from_path=/none", "data.train_path=/none"]
    assert stages.main(["plan", *overrides, "model.restore_from_path=/nowhere"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"output {output}",
        f"references {output}/reference",
        "base ",
        f"checkpoint {checkpoint}",
        "exported ",
    ]
    assert stages.main(["plan", "no.such=key"]) == 2
    assert "plan: error: no.such" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "9999")
    assert stages.main(["plan", *overrides]) == 2
