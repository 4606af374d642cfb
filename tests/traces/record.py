"""Golden traces: what `nemo-gdpo train` computes on a tiny model, by objective and layout.

`python -m tests.traces.record FOLDER` runs every case and writes `FOLDER/<layout>.json`. On one
machine the files are equal to the bit from run to run, so that

    python -m tests.traces.record /tmp/traces && diff -r /tmp/traces tests/assets/traces

shows whether a change of the code moved a trajectory at all. `test_traces.py` compares within 1e-5,
a squared loss by its root, since another processor may round otherwise. The files are never
recorded again to make a test pass.

Every setting that a trajectory depends on is written out here: a default that changes must not move
a trace.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.support.commands import metrics, several
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

STEPS = 4
PAIRS = 20
KEPT = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected")
"""What is kept of a line of metrics.jsonl."""

OBJECTIVES: dict[str, tuple[str, ...]] = {
    "dpo": ("objective=dpo", "objective.beta=0.3", "objective.label_smoothing=0.0"),
    "cdpo": ("objective=dpo", "objective.beta=0.3", "objective.label_smoothing=0.1"),
    "ipo": ("objective=ipo", "objective.beta=0.3", "objective.average_log_probs=false"),
    "ipo_average": ("objective=ipo", "objective.beta=0.3", "objective.average_log_probs=true"),
    "odpo": (
        "objective=odpo",
        "objective.beta=0.3",
        "objective.alpha=1.0",
        "objective.offset=log1p",
    ),
    "adpo": (
        "objective=adpo",
        "objective.beta=0.3",
        "objective.gamma=0.5",
        "objective.pseudo_labels=true",
    ),
    "adpo_no_pseudo": (
        "objective=adpo",
        "objective.beta=0.3",
        "objective.gamma=0.8",
        "objective.pseudo_labels=false",
    ),
    **{
        name: (
            "objective=gdpo",
            f"objective.balance={name.removeprefix('gdpo_').partition('_')[0]}",
            f"objective.reward={'tokenwise' if 'tokenwise' in name else 'cumulative'}",
            f"objective.subtb_lambda={0.9 if 'subtb' in name else 1.0}",
            "objective.alpha=0.5",
            "objective.rejected_log_reward=-8.0",
            f"objective.eos_temperature={0.7 if name != 'gdpo_tb' else 1.0}",
        )
        for name in ("gdpo_db", "gdpo_db_tokenwise", "gdpo_subtb", "gdpo_tb")
    },
}
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one": (1, ()),
    "packed": (1, ("data.packing=true",)),
    "tp2": (2, ("model.tensor_model_parallel_size=2",)),
    "pp2": (2, ("model.pipeline_model_parallel_size=2",)),
}
"""Name -> (ranks, settings)."""

COMMON = (
    "seed=11",
    "precision=fp32",
    "reference=cache",
    "model.global_batch_size=8",
    "model.micro_batch_size=2",
    "data.packing=false",
    "model.make_vocab_size_divisible_by=16",
    "model.logprob_chunk_tokens=24",
    "data.max_length=96",
    "data.max_prompt_length=48",
    "data.truncation_mode=keep_end",
    "data.seed=3",
    "optim=adamw_cosine",
    "optim.lr=2e-3",
    "optim.weight_decay=0.1",
    "optim.betas=[0.9,0.95]",
    "optim.eps=1e-8",
    "optim.sched.warmup_steps=1",
    "optim.sched.min_lr=1e-4",
    "trainer.gradient_clip_val=1.0",
    f"trainer.max_steps={STEPS}",
    "trainer.max_epochs=null",
    "trainer.save_interval=null",
    "logger.tensorboard=false",
    "export_hf=false",
)


def record(layout: str, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Train every objective in one layout below `folder`; objective -> one entry a step.

    Raises:
        AssertionError: a run failed, with what it printed.
    """
    ranks, settings = LAYOUTS[layout]
    model = save_model(folder / "model")
    data = write_jsonl(folder / "pairs.jsonl", pairs(PAIRS))
    commands = {
        name: [
            "train",
            f"model.restore_from_path={model}",
            f"data.train_path={data}",
            f"output_dir={folder / name}",
            *COMMON,
            *settings,
            *objective,
        ]
        for name, objective in OBJECTIVES.items()
    }
    for name, result in several(folder / "commands", commands, ranks=ranks).items():
        assert result.status == 0, f"{layout}, {name}: {result.out}\n{result.err}"
    return {
        name: [{key: entry[key] for key in KEPT} for entry in metrics(folder / name)]
        for name in OBJECTIVES
    }


def main(target: Path) -> None:
    """Record all layouts into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            found = record(layout, Path(folder))
        (target / f"{layout}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{layout}: {len(found)} objectives, {STEPS} steps each", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
