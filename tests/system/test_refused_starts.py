"""A start in a run's own output_dir with another value of every key: it counts, or it is refused.

A refused start leaves everything as it was: names, contents and times of all files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemo_gdpo.config.base import CONTENT, FIXED, FREE
from nemo_gdpo.config.help import keys
from nemo_gdpo.config.schema import TRAIN
from tests.io.test_output_lock import holding
from tests.support.checkpoints import stored
from tests.support.commands import Result, common, metrics, several
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.tokenizers import LLAMA3

from .refusals import damage, damage_checkpoints, lose_checkpoints, snapshot

pytestmark = pytest.mark.parallel

DONE, STEPS = 2, 4
"""Updates of the run that is there, and of the one that goes on."""


@dataclass(frozen=True)
class Setting:
    """What the runs here are made of."""

    root: Path
    model: Path
    data: Path
    other_data: Path

    def arguments(self, output: Path, *more: str) -> list[str]:
        return [
            "train",
            *common(self.model, self.data, output, "objective=dpo", "objective.beta=0.1"),
            f"data.validation_path={self.data}",
            "trainer.save_interval=1",
            "trainer.keep_checkpoints=9",
            *more,
        ]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("refused")
    (root / "template.jinja").write_text(LLAMA3.replace("\n\n", "\n"))
    return Setting(
        root,
        save_model(root / "model"),
        write_jsonl(root / "train.jsonl", [row | {"w": 0.5} for row in pairs(16)]),
        write_jsonl(root / "other.jsonl", pairs(16, seed=3)),
    )


@pytest.fixture(scope="module")
def base(setting: Setting) -> Path:
    """A run of two updates, with a checkpoint of each."""
    output = setting.root / "base"
    arguments = setting.arguments(output, f"trainer.max_steps={DONE}")
    done = several(setting.root / "logs-base", {"base": arguments})
    assert done["base"].status == 0, done["base"].err
    return output


# -- refusals ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A start that is refused."""

    said: str
    more: Callable[[Setting], list[str]] = lambda setting: []
    before: Callable[[Path], object] = lambda output: None
    """Done to the output_dir first."""


def _given(*more: str) -> Callable[[Setting], list[str]]:
    return lambda setting: list(more)


def _no_checkpoint(output: Path) -> None:
    shutil.rmtree(output / "checkpoints")


def _garbage(name: str) -> Callable[[Path], object]:
    return lambda output: (output / name).write_text("{nonsense\n")


REFUSALS: dict[str, Refusal] = {
    "objective": Refusal("(objective.beta: 0.1, now 0.3)", _given("objective.beta=0.3")),
    "another objective": Refusal("(objective.name: dpo, now ipo)", _given("objective=ipo")),
    "batch": Refusal("(global_batch_size: 4, now 2)", _given("model.global_batch_size=2")),
    "precision": Refusal("(precision: fp32, now bf16)", _given("precision=bf16")),
    "order": Refusal("(data.seed: 1234, now 7)", _given("data.seed=7")),
    "optimizer": Refusal(
        "(optim.use_distributed_optimizer: False, now True)",
        _given("optim.use_distributed_optimizer=true"),
    ),
    "adapters": Refusal("(lora.rank: None, now 4)", _given("lora.rank=4")),
    "data": Refusal("fingerprint", lambda s: [f"data.train_path={s.other_data}"]),
    "weights of pairs": Refusal("fingerprint", _given("data.weight_column=w")),
    "margins of pairs": Refusal("fingerprint", _given("data.margin_column=w")),
    "lengths": Refusal("fingerprint", _given("data.max_length=16", "data.max_prompt_length=8")),
    "template": Refusal(
        "fingerprint", lambda s: [f"data.chat_template={s.root / 'template.jinja'}"]
    ),
    "cut at the other end": Refusal("truncation", _given("data.truncation_mode=keep_start")),
    "validation": Refusal(
        "data fingerprint of validation", lambda s: [f"data.validation_path={s.other_data}"]
    ),
    "weights": Refusal(
        "another weights", lambda s: [f"model.restore_from_path={s.root / 'other-model'}"]
    ),
    "begun, without a checkpoint": Refusal(
        "(objective.beta: 0.1, now 0.3)", _given("objective.beta=0.3"), _no_checkpoint
    ),
    "begun, other data": Refusal(
        "data fingerprint of train", lambda s: [f"data.train_path={s.other_data}"], _no_checkpoint
    ),
    "damaged checkpoints": Refusal(
        "none of the 2 checkpoints in", before=damage_checkpoints
    ),
    "lost checkpoints": Refusal("latest names step_00000002, which is missing",
                                before=lose_checkpoints),
    "unreadable metrics": Refusal(
        "metrics.jsonl, line 1: not the line of a step", before=_garbage("metrics.jsonl")
    ),
    "damaged data": Refusal(
        "data/train", before=lambda o: damage(o / "data" / "train" / "pairs.safetensors")
    ),
    "half of the data": Refusal(
        "data/train", before=lambda o: (o / "data" / "train" / "manifest.json").unlink()
    ),
    "damaged record": Refusal("identity.json", before=_garbage("identity.json")),
    "incomplete reference": Refusal(
        "is incomplete", before=lambda o: (o / "reference" / "train" / "manifest.json").unlink()
    ),
    "a pair longer than a packed row": Refusal(
        "data.pack_tokens: pair ", _given("data.packing=true", "data.pack_tokens=16")
    ),
    "longer warm-up": Refusal(
        "optim.sched.warmup_steps: 9 updates are not fewer than the 8 of this run",
        _given("optim.sched.warmup_steps=9", "trainer.max_steps=null", "trainer.max_epochs=2"),
    ),
    "a batch of more than all": Refusal("global_batch_size", _given("model.global_batch_size=32")),
    "a date that nothing reads": Refusal("data.date", _given("data.date=2026-01-31")),
    "fewer updates than were made": Refusal(
        "trainer.max_steps", _given("trainer.max_steps=1")
    ),
}  # fmt: skip


Outcomes = dict[str, tuple[Result, bool]]
"""Case -> how it ended, and whether everything is as it was."""


@pytest.fixture(scope="module")
def refused(setting: Setting, base: Path) -> Outcomes:
    save_model(setting.root / "other-model", seed=8)
    commands, before = {}, {}
    for number, (name, case) in enumerate(REFUSALS.items()):
        output = setting.root / f"refused-{number}"
        shutil.copytree(base, output)
        case.before(output)
        commands[name] = setting.arguments(
            output, f"trainer.max_steps={STEPS}", *case.more(setting)
        )
        before[name] = output, snapshot(output)
    done = several(setting.root / "logs-refused", commands)
    return {
        name: (result, snapshot(before[name][0]) == before[name][1])
        for name, result in done.items()
    }


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_start_changes_nothing(refused: Outcomes, name: str) -> None:
    result, is_as_it_was = refused[name]
    assert result.status == 2, result.err + result.out
    (line,) = result.complaints
    assert REFUSALS[name].said in line
    assert "Traceback" not in result.err
    assert is_as_it_was


def test_a_start_beside_a_living_one(setting: Setting, base: Path) -> None:
    output = setting.root / "busy"
    shutil.copytree(base, output)
    other = holding(output)
    try:
        before = snapshot(output)
        arguments = setting.arguments(output, f"trainer.max_steps={STEPS}")
        result = several(setting.root / "logs-busy", {"busy": arguments})["busy"]
        after = snapshot(output)
    finally:
        other.kill()
        other.wait()
    assert result.status == 2, result.err
    (line,) = result.complaints
    assert f"another run is writing into {output} (process {other.pid} on" in line
    assert {k: v for k, v in after.items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


# -- keys that may change --------------------------------------------------------------------------


@dataclass(frozen=True)
class Went:
    """A resumed run, beside one that was resumed with nothing changed."""

    output: Path
    result: Result
    control: Path

    def rows(self) -> list[dict[str, Any]]:
        return metrics(self.output)

    def end(self, step: int = STEPS) -> Path:
        return self.output / "checkpoints" / f"step_{step:08d}"

    def has_other_weights(self) -> bool:
        one, two = (
            stored(o / "checkpoints" / self.end().name) for o in (self.output, self.control)
        )
        return any(not torch.equal(one[name], two[name]) for name in one)


@dataclass(frozen=True)
class Change:
    """Another value of a key, and how it shows."""

    overrides: tuple[str, ...]
    shows: Callable[[Went], bool]


def _same_weights(went: Went) -> bool:
    return not went.has_other_weights()


def _rate(expected: float) -> Callable[[Went], bool]:
    return lambda went: went.rows()[-1]["learning_rate"] == pytest.approx(expected, abs=1e-12)


def _rng(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "rng" / "rank_00000.safetensors")


def _other_generators(went: Went) -> bool:
    one, two = _rng(went.end()), _rng(went.end(DONE))
    return any(not torch.equal(one[name], two[name]) for name in one)


def _steps(went: Went) -> int:
    return len(list((went.output / "checkpoints").glob("step_*")))


CHANGES: dict[str, Change] = {
    "seed": Change(("seed=9",), _other_generators),
    "reference": Change(("reference=resident",), lambda w: not w.has_other_weights()),
    "reference_cache_dir": Change(
        ("reference_cache_dir={output}/elsewhere",), lambda w: (w.output / "elsewhere").is_dir()
    ),
    "export_hf": Change(("export_hf=true",), lambda w: (w.output / "hf").is_dir()),
    "export_nemo": Change(("export_nemo=true",), lambda w: (w.output / "model.nemo").is_file()),
    "model.cache_converted": Change(
        ("model.cache_converted=true",), lambda w: "converted model" in w.result.out
    ),
    "model.micro_batch_size": Change(("model.micro_batch_size=1",), lambda w: len(w.rows()) == 4),
    "model.activations_checkpoint_granularity": Change(
        ("model.activations_checkpoint_granularity=full",), lambda w: len(w.rows()) == STEPS
    ),
    "model.layers": Change(("model.layers=local",), _same_weights),
    "model.make_vocab_size_divisible_by": Change(
        ("model.make_vocab_size_divisible_by=256",),
        lambda w: json.loads((w.end() / "model_config.json").read_text())
        != json.loads((w.end(DONE) / "model_config.json").read_text()),
    ),
    "model.logprob_chunk_tokens": Change(
        ("model.logprob_chunk_tokens=8",), lambda w: len(w.rows()) == STEPS
    ),
    "data.name": Change(("data.name=other",), _same_weights),
    "trainer.async_save": Change(
        ("trainer.async_save=true", "trainer.save_interval=1"), _same_weights
    ),
    "trainer.verify_checkpoint": Change(("trainer.verify_checkpoint=sizes",), _same_weights),
    "logger.every_n_steps": Change(
        ("logger.every_n_steps=1",), lambda w: f"step {STEPS - 1} of {STEPS}" in w.result.out
    ),
    "logger.peak_tflops": Change(
        ("logger.peak_tflops=0.01",), lambda w: w.rows()[-1]["perf/mfu"] > 0
    ),
    "data.workers": Change(("data.workers=1",), _same_weights),
    "data.packing": Change(
        ("data.packing=true",), lambda w: w.rows()[-1]["train/padding_fraction"]
        < metrics(w.control)[-1]["train/padding_fraction"],
    ),
    "data.pack_tokens": Change(  # one row instead of four or so
        ("data.packing=true", "data.pack_tokens=4096"),
        lambda w: w.rows()[-1]["train/padding_fraction"] < 0.1,
    ),
    "data.prefix_sharing": Change(
        ("data.packing=true", "data.prefix_sharing=true"),
        lambda w: w.rows()[-1]["train/shared_fraction"] > 0.1,
    ),
    "optim.lr": Change(
        ("optim.lr=2e-3", "optim.sched.name=constant"), _rate(2e-3)
    ),
    "optim.weight_decay": Change(("optim.weight_decay=0.5",), Went.has_other_weights),
    "optim.betas": Change(("optim.betas=[0.5,0.6]",), Went.has_other_weights),
    "optim.eps": Change(("optim.eps=1e-3",), Went.has_other_weights),
    "optim.overlap_grad_reduce": Change(("optim.overlap_grad_reduce=true",), _same_weights),
    "optim.sched.name": Change(("optim.sched.name=constant",), _rate(1e-3)),
    "optim.sched.warmup_steps": Change(("optim.sched.warmup_steps=3",), Went.has_other_weights),
    "optim.sched.min_lr": Change(("optim.sched.min_lr=2e-4",), _rate(2e-4)),
    "trainer.max_steps": Change(("trainer.max_steps=3",), lambda w: len(w.rows()) == 3),
    "trainer.max_epochs": Change(("trainer.max_epochs=0.75",), lambda w: len(w.rows()) == 3),
    "trainer.gradient_clip_val": Change(
        ("trainer.gradient_clip_val=0.01",), Went.has_other_weights
    ),
    "trainer.val_check_interval": Change(
        ("trainer.val_check_interval=1",), lambda w: "val/loss" in w.rows()[DONE]
    ),
    "trainer.limit_val_batches": Change(
        ("trainer.limit_val_batches=1",),
        lambda w: w.rows()[-1]["val/loss"] != metrics(w.control)[-1]["val/loss"],
    ),
    "trainer.save_interval": Change(("trainer.save_interval=null",), lambda w: _steps(w) == 3),
    "trainer.keep_checkpoints": Change(("trainer.keep_checkpoints=1",), lambda w: _steps(w) == 1),
    "trainer.check_initial_loss": Change(("trainer.check_initial_loss=false",), _same_weights),
    "trainer.max_skipped_steps": Change(("trainer.max_skipped_steps=0",), _same_weights),
    "trainer.collective_timeout_minutes": Change(
        ("trainer.collective_timeout_minutes=3",), _same_weights
    ),
    # The model's own sizes stand beside its weights.
    "model.architecture": Change(("model.architecture=smollm2_135m",), _same_weights),
    "logger.tensorboard": Change(
        ("logger.tensorboard=true",), lambda w: any((w.output / "logs").iterdir())
    ),
}  # fmt: skip
ELSEWHERE = {
    "output_dir": "every run here is in another directory than it began in",
    **{
        f"model.{name}": "checkpoints load under another mesh: tests/system/test_resume.py"
        for name in (
            "tensor_model_parallel_size", "pipeline_model_parallel_size",
            "virtual_pipeline_model_parallel_size", "context_parallel_size", "sequence_parallel",
        )
    },
    "trainer.devices": "ranks on this machine: tests/system/test_resume.py",
    "trainer.num_nodes": "nodes of a job: tests/system/test_slurm_generate.py",
    "model.attention_backend": "there is one on a CPU",
    "lora.export_peft": "of a run with adapters: tests/system/test_lora.py",
    **dict.fromkeys(
        ("label.budget", "label.most_open", "label.sources"),
        "of a run that asks people: tests/system/test_live_labels.py",
    ),
    "trainer.max_minutes": "ends a start early: tests/system/test_stops.py",
    **{
        f"logger.{name}": "a service: tests/training/test_trackers.py"
        for name in (
            "wandb", "wandb_project", "wandb_name",
            "mlflow", "mlflow_tracking_uri", "mlflow_experiment",
        )
    },
}  # fmt: skip
"""Keys that may change, and that a run of one rank on a CPU cannot change."""
CONTENTS = {
    "model.restore_from_path": "weights",
    "data.train_path": "data",
    "data.validation_path": "validation",
    "data.weight_column": "weights of pairs",
    "data.margin_column": "margins of pairs",
    "data.max_length": "lengths",
    "data.max_prompt_length": "lengths",
    "data.chat_template": "template",
    "data.truncation_mode": "cut at the other end",
}
"""Key that counts by what it makes -> the refusal above."""
SAME_CONTENT = {
    "data.format": ("data.format=trl",),
    "data.on_bad_pair": ("data.on_bad_pair=drop",),
    "data.split": ("data.split=other",),
    "data.validation_split": ("data.validation_split=other",),
}
"""Keys that count by what they make, at a value that makes the same."""
NO_OTHER = {
    "data.preset": "its columns are those of other files",
    "data.label_threshold": "of rows that are no pairs: tests/data/test_unpaired.py",
    "lora.restore_from_path": "of a run with adapters: tests/system/test_lora.py",
    "reference_model": "of a run that goes on from another: tests/system/test_reference_model.py",
    "data.group_size": "of rows that are no pairs: tests/parallel/meshes.py",
}


def test_every_key_is_tried() -> None:
    by_kind = {
        kind: {key.name for key in keys(TRAIN) if key.on_resume is kind}
        for kind in (FREE, FIXED, CONTENT)
    }
    assert by_kind[FREE] == set(CHANGES) | set(ELSEWHERE)
    assert by_kind[CONTENT] == set(CONTENTS) | set(SAME_CONTENT) | set(NO_OTHER)


@pytest.fixture(scope="module")
def resumed(setting: Setting, base: Path) -> dict[str, Went]:
    commands, outputs = {}, {}
    tried = {"control": ()} | {key: change.overrides for key, change in CHANGES.items()}
    for number, (key, overrides) in enumerate({**tried, **SAME_CONTENT}.items()):
        output = setting.root / f"resumed-{number}"
        shutil.copytree(base, output)
        given = [o.format(output=output, root=setting.root) for o in overrides]
        commands[key] = setting.arguments(output, f"trainer.max_steps={STEPS}", *given)
        outputs[key] = output
    done = several(setting.root / "logs-resumed", commands)
    return {key: Went(outputs[key], done[key], outputs["control"]) for key in commands}


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_that_may_change_takes_effect(resumed: dict[str, Went], key: str) -> None:
    went = resumed[key]
    assert went.result.status == 0, went.result.err
    assert f"resumed step_{DONE:08d}" in went.result.out
    assert CHANGES[key].shows(went)


@pytest.mark.parametrize("key", SAME_CONTENT)
def test_a_key_that_makes_the_same_is_no_other_run(resumed: dict[str, Went], key: str) -> None:
    went = resumed[key]
    assert went.result.status == 0, went.result.err
    assert f"resumed step_{DONE:08d}" in went.result.out
    assert not went.has_other_weights()
