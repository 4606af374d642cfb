"""Assemble a run from its resolved configuration and carry it through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.models import MODEL_CLASSES, MegatronGPTPreferenceModel
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.objectives import build_objective
from nemo_gdpo.platform import Platform, current_platform
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.checkpoint import Checkpointer, find_newest_valid
from nemo_gdpo.training.datasets import load_split
from nemo_gdpo.training.export import export_run, write_assets
from nemo_gdpo.training.loggers import MetricsLog
from nemo_gdpo.training.mesh import Mesh, build_mesh, join_world, leave_world
from nemo_gdpo.training.model_source import ModelSource, open_source
from nemo_gdpo.training.optimizer import build_optimizer, build_scheduler
from nemo_gdpo.training.reference import Stopped, cached_reference
from nemo_gdpo.training.reference_store import ReferenceKey, ReferenceStore
from nemo_gdpo.training.signals import StopRequest
from nemo_gdpo.training.trainer import Outcome, PreferenceTrainer, Split, total_steps


def layout_of(cfg: DictConfig) -> ParallelLayout:
    """How the `model` section cuts the model."""
    m = cfg.model
    return ParallelLayout(
        tensor=m.tensor_model_parallel_size,
        pipeline=m.pipeline_model_parallel_size,
        virtual_pipeline=m.virtual_pipeline_model_parallel_size,
        context=m.context_parallel_size,
        sequence_parallel=m.sequence_parallel,
        recompute=m.activations_checkpoint_granularity,
        vocab_divisible_by=m.make_vocab_size_divisible_by,
    )


@dataclass
class Run:
    """The parts that training, reference computation and evaluation share."""

    cfg: DictConfig
    output_dir: Path
    platform: Platform
    mesh: Mesh
    source: ModelSource
    train: PreferenceDataset
    validation: PreferenceDataset | None
    model: MegatronGPTPreferenceModel

    def say(self, text: str) -> None:
        """A line for the user, from the main rank."""
        if self.mesh.is_main:
            print(text, flush=True)

    def builder(self, data: PreferenceDataset) -> BatchBuilder:
        """Micro-batches of `data` for this rank."""
        return BatchBuilder(
            pairs=data,
            pad_token_id=data.pad_token_id,
            layout=self.mesh.layout,
            micro_batch_size=self.cfg.model.micro_batch_size,
            packing=self.cfg.data.packing,
            data_rank=self.mesh.data_rank,
            data_size=self.mesh.data_size,
            device=self.mesh.device,
        )

    def reference_key(self, data: PreferenceDataset) -> ReferenceKey:
        """What the reference log-probs of `data` depend on."""
        columns = ["label"]
        temperature = self.model.reference_eos_temperature
        if self.model.objective.needs_eos:
            columns += ["eos"] + (["tempered_eos"] if temperature != 1.0 else [])
        d = self.cfg.data
        return ReferenceKey(
            weights=self.source.fingerprint,
            data=data.fingerprint,
            template=str(data.settings.get("chat_template")),
            truncation=f"{d.truncation_mode} prompt {d.max_prompt_length} total {d.max_length}",
            precision=self.cfg.precision,
            eos_temperature=temperature,
            columns=tuple(columns),
        )

    def reference_store(
        self, data: PreferenceDataset, name: str, stop: StopRequest
    ) -> ReferenceStore:
        """The cached reference of `data`, computed now if it is not there."""
        directory = Path(self.cfg.reference_cache_dir or self.output_dir / "reference") / name
        store, reused = cached_reference(
            self.model, self.mesh, self.builder(data), directory, self.reference_key(data),
            global_batch_size=self.cfg.model.global_batch_size, stop=stop,
            label=f"reference {name}",
        )  # fmt: skip
        self.say(f"reference {name}: {'reused' if reused else 'computed'} {directory}")
        return store


def assemble(cfg: DictConfig) -> Run:
    """Join the world, read data and weights, and build the model on every rank.

    Raises:
        UserError: the input or the configuration is wrong.
    """
    platform = current_platform()
    join_world(platform)
    layout = layout_of(cfg)
    mesh = build_mesh(layout, platform, seed=cfg.seed)
    output_dir = Path(cfg.output_dir).absolute()
    if mesh.is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    source = open_source(
        cfg.model.restore_from_path,
        mesh,
        divisible_by=cfg.model.make_vocab_size_divisible_by,
        cache_converted=cfg.model.cache_converted,
    )
    fields = dict(OmegaConf.to_container(cfg.objective))  # type: ignore[arg-type]
    objective = build_objective(str(fields.pop("name")), fields)
    train = load_split(cfg, "train", source, output_dir, mesh)
    validation = load_split(cfg, "validation", source, output_dir, mesh)
    assert train is not None
    # Now, not after an hour of reference computation: is there one global batch of pairs?
    PreferenceSampler(len(train), cfg.data.seed, train.fingerprint).global_batch(
        0, cfg.model.global_batch_size
    )
    model = MODEL_CLASSES[cfg.objective.name](
        cfg,
        objective=objective,
        model_config=source.model_config,
        layout=layout,
        end_token_id=train.end_token_id,
    )
    source.load_into(model)
    return Run(cfg, output_dir, platform, mesh, source, train, validation, model)


def _identity(run: Run) -> dict[str, Any]:
    """What a resumed run must share with the one that saved the checkpoint."""
    objective = OmegaConf.to_container(run.cfg.objective)
    return {
        "weights": run.source.fingerprint,
        "objective": json.loads(json.dumps(objective)),
        "global_batch_size": run.cfg.model.global_batch_size,
        "precision": run.cfg.precision,
        "optim": json.loads(json.dumps(OmegaConf.to_container(run.cfg.optim))),
        "total_steps": total_steps(run.cfg, len(run.train)),
        "seed": run.cfg.seed,
    }


def _check_identity(saved: dict[str, Any], own: dict[str, Any], checkpoint: Path) -> None:
    from nemo_gdpo.errors import UserError

    # The length of the run and the learning rate may be changed on purpose; what the numbers in the
    # checkpoint mean may not.
    fixed = ("weights", "objective", "global_batch_size", "precision")
    differing = [name for name in fixed if saved.get(name) != own[name]]
    if differing:
        name = differing[0]
        raise UserError(
            f"resume: {checkpoint} was made with another {', '.join(differing)} "
            f"({name}: {saved.get(name)}, now {own[name]}); restore the setting, or set another "
            "output_dir to start a new run"
        )


def _resume(run: Run, trainer: PreferenceTrainer, identity: dict[str, Any]) -> None:
    root = run.output_dir / "checkpoints"
    found = [find_newest_valid(root) if run.mesh.is_main else None]
    dist.broadcast_object_list(found, src=0)
    assert found[0] is not None
    for line in found[0].skipped:
        run.say(line)
    if found[0].path is None:
        return
    saved = json.loads((found[0].path / "trainer_state.json").read_text())
    _check_identity(saved["identity"], identity, found[0].path)
    trainer.restore(trainer.checkpointer.load(found[0].path))
    run.say(f"resumed {found[0].path.name}: {trainer.progress.step} of {trainer.total_steps} steps")


def train(cfg: DictConfig) -> Outcome:
    """Train as configured; on DONE the checkpoint, and the export if asked for, are on disk."""
    run = assemble(cfg)
    run.say(
        f"{type(run.model).__name__} {cfg.objective.name}, {run.mesh.world_size} ranks "
        f"(TP{run.mesh.layout.tensor} PP{run.mesh.layout.pipeline} CP{run.mesh.layout.context} "
        f"DP{run.mesh.data_size}), {cfg.precision}, {len(run.train)} pairs"
    )
    with StopRequest(run.mesh.device) as stop:
        outcome, checkpoint = _train_under_signals(run, stop)
    main = run.mesh.is_main
    leave_world()
    if outcome is Outcome.DONE and cfg.export_hf and main and checkpoint is not None:
        run.say(f"exported {export_run(run, checkpoint)}")
    return outcome


def _reference_stores(run: Run, stop: StopRequest) -> dict[str, ReferenceStore | None]:
    run.model.prepare_for_inference()
    splits = {"train": run.train, "validation": run.validation}
    return {
        name: None if data is None else run.reference_store(data, name, stop)
        for name, data in splits.items()
    }


def compute_reference(run: Run) -> None:
    """Make the caches that a training run with this configuration would make.

    Raises:
        Stopped: a signal came.
    """
    with StopRequest(run.mesh.device) as stop:
        _reference_stores(run, stop)
    leave_world()


def _train_under_signals(run: Run, stop: StopRequest) -> tuple[Outcome, Path | None]:
    cfg, model = run.cfg, run.model
    stores: dict[str, ReferenceStore | None] = {"train": None, "validation": None}
    if cfg.reference == "resident":
        model.attach_resident_reference()
    else:
        try:
            stores = _reference_stores(run, stop)
        except Stopped:
            return Outcome.STOPPED, None
    model.prepare_for_training()
    optimizer = build_optimizer(cfg, model.policy_chunks)
    identity = _identity(run)
    checkpointer = Checkpointer(
        run.output_dir / "checkpoints", model, optimizer, run.mesh,
        write_assets=partial(write_assets, run), keep=cfg.trainer.keep_checkpoints,
    )  # fmt: skip
    splits = {
        name: Split(data, run.builder(data), stores[name])
        for name, data in (("train", run.train), ("validation", run.validation))
        if data is not None
    }
    trainer = PreferenceTrainer(
        cfg, model, run.mesh, splits["train"], splits.get("validation"), optimizer,
        build_scheduler(cfg, optimizer, total_steps(cfg, len(run.train))),
        checkpointer, stop, identity,
    )  # fmt: skip
    _resume(run, trainer, identity)
    with MetricsLog(
        cfg, run.output_dir, enabled=run.mesh.is_main, resume_step=trainer.progress.step
    ) as log:
        outcome = trainer.fit(log)
    return outcome, checkpointer.newest(trainer.progress.step)
