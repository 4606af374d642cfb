"""The operator page's table of which experiment fits which GPUs is what the sizes compute to."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems
from tests.support.ranks import ROOT

RESERVE = 5.0
"""GB for CUDA, NCCL and what is made in between, as the page has it."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a published model."""

    layers: int
    hidden: int
    heads: int
    groups: int
    head: int
    ffn: int
    vocabulary: int
    tied: bool
    norms: int
    """Norms of a layer, each as wide as the hidden state."""

    @property
    def layer(self) -> int:
        """Parameters of a layer."""
        attention = 2 * self.hidden * self.head * (self.heads + self.groups)
        return attention + 3 * self.hidden * self.ffn + self.norms * self.hidden

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        matrices = 1 if self.tied else 2
        return self.layers * self.layer + matrices * self.embedding + self.hidden

    def kept(self, tensor: int) -> float:
        """Bytes that a layer keeps for each token, in bf16: inputs of norms and products."""
        wide = self.head * (2 * self.heads + 2 * self.groups) + 3 * self.ffn
        return 2 * (wide + (self.norms + 2) * self.hidden) / tensor


MODELS = {
    "llama3_8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, False, 2),
    "gemma2_9b": Shape(42, 3584, 16, 8, 256, 14336, 256000, True, 4),
    "llama3_70b": Shape(80, 8192, 64, 8, 128, 28672, 128256, False, 2),
}
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
    assert MODELS[name].parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.005)


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

    shape = MODELS[EXPERIMENTS[script].partition("_")[2]]
    ends = 1 if pipeline > 1 or shape.tied else 2  # embedding and head on the same rank, or not
    held = (shape.layers / pipeline * shape.layer + ends * shape.embedding) / tensor
    own = held * (2 + 4 + 12 / copies) / 1e9
    assert config.optim.use_distributed_optimizer
    assert states == f"{own:.0f} GB"
    tokens = 2 * model.micro_batch_size * config.data.max_length
    # Of `pipeline` micro-batches in flight, the layers of one stage each.
    kept = shape.kept(tensor) * tokens * shape.layers / 1e9
    assert activations == f"{kept:.0f} GB"
    assert own + kept + RESERVE <= int(memory.removesuffix(" GB"))


def test_the_sums_in_the_experiments_are_those_of_the_table() -> None:
    for script, experiment in EXPERIMENTS.items():
        files = [experiment, f"_{experiment.partition('_')[2]}"]
        paths = [ROOT / "conf" / "experiment" / f"{name}.yaml" for name in files]
        said = "".join(path.read_text() for path in paths if path.exists())
        (own,) = (row for row in ROWS if row[0] == script and not row[3])
        assert f"= {own[5]}" in said
        assert own[6] in said
