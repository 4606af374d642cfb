"""The Python API: runs from typed configurations, in this process and in ranks of a mesh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import nemo_gdpo
from examples.python import own_loop, train
from nemo_gdpo import DPO, GDPO, RunConfig, UserError, recipes
from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.objective import ADPOSettings, DPOSettings, ODPOSettings
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.evaluation.results import read_results
from tests.evaluation.written_runs import ordinary
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("api") / "model", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pairs(8))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(model: Path, data: Path, tmp_path: Path) -> RunConfig:
    return recipes.change(
        recipes.gdpo(model, data, output_dir=tmp_path / "run"),
        {
            "model.global_batch_size": 4,
            "model.micro_batch_size": 2,
            "data.max_length": 96,
            "data.max_prompt_length": 48,
            "optim.lr": 1e-3,
            "trainer.max_steps": 2,
            "trainer.max_epochs": None,
            "logger.tensorboard": False,
        },
    )


# -- configurations ----------------------------------------------------------------------------


def test_recipes_are_the_command_lines_defaults() -> None:
    assert recipes.run_config() == RunConfig()
    assert recipes.run_config("objective=dpo").objective == DPOSettings()
    assert recipes.odpo("m", "p").objective == ODPOSettings()
    assert recipes.adpo("m", "p", validation="v").data.validation_path == "v"
    assert recipes.adpo("m", "p").objective == ADPOSettings()
    assert recipes.dpo("m", "p").output_dir == "runs/dpo"
    for recipe in (recipes.gdpo_llama3_8b, recipes.odpo_llama3_8b, recipes.adpo_llama3_8b):
        config = recipe("optim.lr=1e-6")
        assert config == recipes.experiment(recipe.__name__, ["optim.lr=1e-6"])
        assert recipe.__name__.startswith(config.objective.name)
    cluster = recipes.experiment("gdpo_llama3_8b", ["optim.lr=1e-6"])
    assert (cluster.model.tensor_model_parallel_size, cluster.optim.lr) == (4, 1e-6)


def test_changes_are_checked_like_a_command_line() -> None:
    config = RunConfig()
    changed = recipes.change(config, {"optim.lr": 1e-6, "objective": DPO(beta=0.2)})
    assert (changed.optim.lr, changed.objective) == (1e-6, DPOSettings(beta=0.2))
    assert config.optim.lr == 5e-7
    with pytest.raises(UserError, match=r"^optim.learning_rate: .*use optim.lr$"):
        recipes.change(config, {"optim.learning_rate": 1e-6})
    with pytest.raises(UserError, match=r"^optim.lr: -1 is not allowed"):
        recipes.change(config, {"optim.lr": -1})


def test_every_public_name_is_there() -> None:
    for name in nemo_gdpo.__all__:
        assert getattr(nemo_gdpo, name) is not None
    assert set(dir(nemo_gdpo)) == set(nemo_gdpo.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = nemo_gdpo.trian  # type: ignore[attr-defined]


def test_a_configuration_loads_no_torch() -> None:
    code = (
        "import sys, nemo_gdpo; nemo_gdpo.recipes.gdpo('m', 'p'); "
        "print([m for m in ('torch', 'megatron', 'nemo', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.nightly
def test_train_on_one_rank(config: RunConfig, tmp_path: Path) -> None:
    result = nemo_gdpo.train(config)
    assert result.finished
    assert [entry["step"] for entry in result.metrics] == [0, 1]
    assert result.metrics[0]["loss"] == pytest.approx(64.0, rel=1e-4)  # kappa 8, squared
    assert result.checkpoint == tmp_path / "run" / "checkpoints" / "step_00000002"
    assert result.hf is not None
    AutoModelForCausalLM.from_pretrained(result.hf)
    assert read_config(tmp_path / "run" / "config.yaml", TRAIN) == config
    # Nothing of the rank is left here: the next call may start another mesh.
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & set(os.environ)
    # Called again it finds the run finished; with more steps it resumes.
    longer = recipes.change(config, {"trainer.max_steps": 3, "export_hf": False})
    resumed = nemo_gdpo.train(longer)
    assert [entry["step"] for entry in resumed.metrics] == [0, 1, 2]
    assert resumed.hf is None


@pytest.mark.slow
def test_train_on_a_mesh_is_the_same_run(config: RunConfig, tmp_path: Path) -> None:
    mesh = recipes.change(
        config,
        {
            "model.pipeline_model_parallel_size": 2,
            "output_dir": str(tmp_path / "mesh"),
            "export_hf": False,
        },
    )
    alone = nemo_gdpo.train(recipes.change(config, {"export_hf": False}))
    together = nemo_gdpo.train(mesh)
    assert together.finished
    for one, other in zip(alone.metrics, together.metrics, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_mistakes_are_raised_as_one_line(config: RunConfig) -> None:
    wrong = recipes.change(config, {"data.train_path": "/no/such.jsonl", "trainer.max_steps": None})
    with pytest.raises(UserError, match=r"data.train_path: /no/such.jsonl does not exist"):
        nemo_gdpo.train(wrong)


@pytest.mark.slow
def test_what_a_rank_refuses_is_raised_here(config: RunConfig, tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", ["{}"])
    with pytest.raises(UserError, match=r"bad.jsonl.*line 1"):
        nemo_gdpo.train(recipes.change(config, {"data.train_path": str(bad)}))


@pytest.mark.slow
def test_convert_there_and_back(model: Path, tmp_path: Path) -> None:
    megatron = nemo_gdpo.convert(model, tmp_path / "megatron")
    back = nemo_gdpo.convert(megatron, tmp_path / "hf")
    one, other = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (model, back))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_evaluate_returns_what_it_writes(tmp_path: Path) -> None:
    directory = ordinary(tmp_path / "samples")
    config = nemo_gdpo.EvaluateConfig.model_validate(
        {
            "output_dir": str(tmp_path / "report"),
            "evaluation": {"runs": {"base": str(directory)}, "encoder": None},
        }
    )
    results = nemo_gdpo.evaluate(config)
    assert read_results(tmp_path / "report") == results
    assert (tmp_path / "report" / "report.html").is_file()


# -- the examples ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.nightly
def test_example_train(model: Path, data: Path, tmp_path: Path) -> None:
    margins = train.main(str(model), str(data), str(tmp_path), steps=1)
    assert margins.keys() == {"dpo", "gdpo"}


@pytest.mark.slow
def test_example_own_loop(model: Path) -> None:
    losses = own_loop.main(str(model), steps=3, rate=1e-3)
    assert losses[0] == pytest.approx(64.0, rel=1e-4)
    assert losses[2] < losses[1] < losses[0]
    assert GDPO().alpha * GDPO().rejected_log_reward == -8.0


@pytest.mark.slow
def test_the_readmes_python_runs(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition("```python\n")
    block, fence, _ = rest.partition("```\n")
    assert fence
    assert "import nemo_gdpo" in block
    (tmp_path / "MODEL").symlink_to(model)
    (tmp_path / "pairs.jsonl").symlink_to(data)
    (tmp_path / "quick_start.py").write_text(block)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NEMO_GDPO_")}
    done = subprocess.run(
        [sys.executable, "quick_start.py"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("runs/mine/hf")
