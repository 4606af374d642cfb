"""The operator page's table of which experiment fits which GPUs is what the sizes compute to."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.memory import setup_of
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems
from nemo_gdpo.plan.memory import RESERVE, fullest, layer_bytes, memory_of_stages
from nemo_gdpo.plan.shape import KNOWN
from tests.support.ranks import ROOT

MODELS = ("llama3_8b", "gemma2_9b", "llama3_70b")
BILLIONS = {"llama3_8b": 8.03, "gemma2_9b": 9.24, "llama3_70b": 70.55}
EXPERIMENTS = {
    "*_llama3_8b.sub": "gdpo_llama3_8b",
    "gdpo_gemma2_9b.sub": "gdpo_gemma2_9b",
    "gdpo_llama3_70b.sub": "gdpo_llama3_70b",
}


def table() -> list[list[str]]:
    """Cells of the rows."""
    text = (ROOT / "docs" / "operator.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^### Which experiment for which GPUs\n(.*?)^### ", text, re.M | re.S)
    rows = [line.strip("| ").split("|") for line in section.splitlines() if ".sub" in line]
    return [[row[0].strip(" `"), *(cell.strip() for cell in row[1:])] for row in rows]


ROWS = table()


def config_of(script: str, gpus: int, added: str) -> RunConfig:
    """The experiment as the job would run it."""
    words = re.findall(r"`([^`]+)`", added)
    words = [word for word in " ".join(words).split() if not word.startswith("--")]
    flags = re.findall(r"--gpus-per-node=(\d+)", added)
    devices = int(flags[0]) if flags else 8
    given = [f"trainer.devices={devices}", f"trainer.num_nodes={gpus // devices}"]
    given += ["model.restore_from_path=/nowhere", "data.train_path=/nowhere"]
    given += ["data.validation_path=/nowhere"]
    return TRAIN.parse(compose([f"experiment={EXPERIMENTS[script]}", *given, *words], TRAIN).plain)


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_are_those_of_the_models(name: str) -> None:
    assert KNOWN[name].parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.005)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]} {row[1]} {row[4]}" for row in ROWS])
def test_a_row(row: list[str]) -> None:
    script, gpus, memory, added, mesh, states, activations = row
    config = config_of(script, int(gpus), added)
    assert problems(config, files=False) == []
    model = config.model
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    copies, rest = divmod(int(gpus), tensor * pipeline * model.context_parallel_size)
    assert rest == 0
    assert mesh == f"{tensor}, {pipeline}, {copies}"
    nodes = re.findall(r"--nodes=(\d+)", added)
    assert config.trainer.num_nodes == int(nodes[0]) if nodes else True

    name = EXPERIMENTS[script].partition("_")[2]
    assert config.model.architecture == name
    shape, setup = KNOWN[name], setup_of(config, copies)
    estimate = fullest(memory_of_stages(shape, setup))
    own = estimate.static / 1e9
    assert config.optim.use_distributed_optimizer
    assert states == f"{own:.0f} GB"
    # Of `pipeline` micro-batches in flight, the layers of one stage each.
    plain = replace(setup, recompute=None)
    kept = layer_bytes(shape, plain) * plain.positions * shape.layers / 1e9
    assert activations == f"{kept:.0f} GB"
    room = int(memory.removesuffix(" GB")) * 1e9
    assert own * 1e9 + kept * 1e9 + RESERVE <= room
    assert estimate.total <= room


def test_the_sums_in_the_experiments_are_those_of_the_table() -> None:
    for script, experiment in EXPERIMENTS.items():
        files = [experiment, f"_{experiment.partition('_')[2]}"]
        paths = [ROOT / "conf" / "experiment" / f"{name}.yaml" for name in files]
        said = "".join(path.read_text() for path in paths if path.exists())
        (own,) = (row for row in ROWS if row[0] == script and not row[3])
        assert f"= {own[5]}" in said
        assert own[6] in said
