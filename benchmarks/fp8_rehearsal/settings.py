"""What is rehearsed: objectives, recipes, seeds, and where a job leaves what it found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.precisions import REHEARSALS

OBJECTIVES = {
    **{name: (f"objective={name}",) for name in ("dpo", "ipo", "odpo", "adpo", "spl")},
    **{
        f"gdpo_{balance}{suffix}": ("objective=gdpo", f"objective.balance={balance}", *eos)
        for suffix, eos in (("", ()), ("_eos0.1", ("objective.eos_temperature=0.1",)))
        for balance in ("tb", "subtb", "db")
    },
}
"""Rows of the table -> overrides. ODPO and the rest at the defaults of their sections."""
PRECISIONS = {"fp32": "fp32"} | {recipe: name for name, recipe in REHEARSALS.items()}
BATCH = 8
"""Pairs of a global batch at step 0, and of an update of `make demo`."""
FEW_PAIRS = 80
SOME_OBJECTIVES = ("dpo", "gdpo_tb", "gdpo_tb_eos0.1")
SOME_RECIPES = ("tensorwise",)
"""What 20 minutes of one core have room for."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: Path
    model: Path
    data: Path
    steps: int
    seeds: tuple[int, ...]
    objectives: tuple[str, ...]
    recipes: tuple[str, ...]
    batches: int
    limit_validation: int
    batch: int = BATCH
    """Pairs of an update in the trainings."""


def config_of(
    options: Options, objective: str, recipe: str, seed: int, *extra: str, batch: int = BATCH
) -> RunConfig:
    """The configuration of a job: that of `experiment=demo`, on one rank."""
    given = [
        "experiment=demo",
        "parallel=single",
        *OBJECTIVES[objective],
        f"precision={PRECISIONS[recipe]}",
        f"seed={seed}",
        f"data.seed={seed}",
        f"model.restore_from_path={options.model}",
        f"data.train_path={options.data / 'train.jsonl'}",
        f"data.validation_path={options.data / 'validation.jsonl'}",
        f"output_dir={options.folder / 'runs' / f'{objective}-{recipe}-{seed}-{batch}'}",
        f"model.global_batch_size={batch}",
        "logger.tensorboard=false",
        "export_hf=false",
        *extra,
    ]
    return TRAIN.parse(compose(given, TRAIN).plain)


def step0_file(options: Options, recipe: str, seed: int) -> Path:
    """What a step-0 job leaves."""
    return options.folder / "step0" / f"{recipe}-{seed}-{options.batches}.safetensors"


def train_file(options: Options, objective: str, recipe: str, seed: int) -> Path:
    """What a training job leaves."""
    name = f"{objective}-{recipe}-{seed}-{options.steps}x{options.batch}.json"
    return options.folder / "trained" / name
