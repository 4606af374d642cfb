"""Lengths nobody chose fit the model; a choice that does not fit it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.model import ModelConfig
from nemo_gdpo.config.schema import TRAIN, DataConfig, RunConfig


def _composed(*overrides: str) -> RunConfig:
    return TRAIN.parse(compose(list(overrides), TRAIN).plain)


def _model(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("positions", "expected"),
    [(256, (256, 128)), (512, (512, 256)), (1024, (1024, 512)), (8192, (1024, 512)), (3, (3, 1))],
)
def test_defaults_fit_the_positions(
    tmp_path: Path, positions: int, expected: tuple[int, int]
) -> None:
    model = _model(tmp_path / "m", json.dumps({"max_position_embeddings": positions}))
    data = _composed(f"model.restore_from_path={model}").data
    assert (data.max_length, data.max_prompt_length) == expected


def test_of_a_megatron_checkpoint_and_of_the_newest_of_a_run(tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoints" / "step_00000020"
    step.mkdir(parents=True)
    (step / "model_config.json").write_text(json.dumps({"max_position_embeddings": 96}))
    (step / "manifest.json").write_text("{}")
    for path in (step, tmp_path / "run"):
        config = _composed(f"model.restore_from_path={path}")
        assert config.model.restore_from_path == str(step)
        assert config.data.max_length == 96


def test_one_that_is_chosen_stays_and_the_prompt_follows(tmp_path: Path) -> None:
    model = _model(tmp_path / "m", json.dumps({"max_position_embeddings": 256}))
    given = f"model.restore_from_path={model}"
    assert _composed(given, "data.max_length=512").data.max_length == 512  # refused by validate
    for length, prompt in ((512, 256), (64, 32), (4096, 512)):
        data = _composed(f"data.max_length={length}").data
        assert (data.max_length, data.max_prompt_length) == (length, prompt)
        assert DataConfig(max_length=length).max_prompt_length == prompt
    assert _composed(given, "data.max_prompt_length=200").data.max_length == 256


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"max_position_embeddings": true}', '{"max_position_embeddings": 0}']
)
def test_a_model_that_does_not_say_leaves_the_usual_lengths(tmp_path: Path, text: str) -> None:
    model = _model(tmp_path / "m", text)
    data = _composed(f"model.restore_from_path={model}").data
    assert (data.max_length, data.max_prompt_length) == (1024, 512)
    assert _composed("model.restore_from_path=/nowhere").data.max_length == 1024


def test_a_length_that_is_no_number_is_named(tmp_path: Path) -> None:
    parsed, found = TRAIN.parse_leniently(compose(["data.max_length=long"], TRAIN).plain)
    assert [problem.key for problem in found] == ["data.max_length"]
    assert parsed.data.max_prompt_length == 512


def test_a_configuration_made_in_python_has_the_same(tmp_path: Path) -> None:
    model = _model(tmp_path / "m", json.dumps({"max_position_embeddings": 256}))
    start = ModelConfig(restore_from_path=str(model))
    config = RunConfig(model=start, data=DataConfig(train_path="pairs.jsonl"))
    assert config == _composed(f"model.restore_from_path={model}", "data.train_path=pairs.jsonl")
    assert config.data.max_length == 256
    chosen = RunConfig(model=start, data=DataConfig(max_length=100, max_prompt_length=9)).data
    assert (chosen.max_length, chosen.max_prompt_length) == (100, 9)
