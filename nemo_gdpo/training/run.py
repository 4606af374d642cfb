"""One run: its parts built from its configuration, and carried through.

`Run.build` joins the world, reads data and weights and builds the model. Then either `train` does
all the rest, or the steps are taken one by one:

    run = Run.build(config)
    with run.stop_request() as stop:
        references = run.prepare_reference(stop)
        trainer = run.build_trainer(references, stop)
        outcome = run.fit(trainer)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nemo_gdpo.config.composition import config_yaml
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.errors import RunError, Stopped, UserError
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.objectives import build_objective
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.checkpoint import Checkpointer
from nemo_gdpo.training.datasets import load_split
from nemo_gdpo.training.export import (
    export_run,
    model_card_of,
    trained_template,
    write_assets,
)
from nemo_gdpo.training.loggers import MetricsLog
from nemo_gdpo.training.mesh import Mesh, build_mesh, join_world, leave_world
from nemo_gdpo.training.model_source import ModelSource, open_source
from nemo_gdpo.training.optimizer import build_optimizer, build_scheduler
from nemo_gdpo.training.reference import cached_reference
from nemo_gdpo.training.reference_store import ReferenceKey, ReferenceStore
from nemo_gdpo.training.resume import agree_on_config, identity_of, refuse_another_run, resume
from nemo_gdpo.training.trainer import Outcome, PreferenceTrainer, Split, total_steps

if TYPE_CHECKING:
    from nemo_gdpo.nemo.model import MegatronGPTPreferenceModel

References = Mapping[str, ReferenceStore | None]
"""Split -> its cached reference; None where a resident copy serves."""


class NemoClass(Protocol):
    """NeMo's class around a model; `train` passes one, nothing else needs nemo."""

    def __call__(self, config: RunConfig, core: PreferenceModel) -> MegatronGPTPreferenceModel: ...


def layout_of(config: RunConfig) -> ParallelLayout:
    """How the `model` section cuts the model."""
    model = config.model
    return ParallelLayout(
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        virtual_pipeline=model.virtual_pipeline_model_parallel_size,
        context=model.context_parallel_size,
        sequence_parallel=model.sequence_parallel,
        recompute=model.activations_checkpoint_granularity,
        layers=model.layers,
        attention_backend=model.attention_backend,
        vocab_divisible_by=model.make_vocab_size_divisible_by,
    )


@dataclass
class Run:
    """The parts of a run on this rank."""

    config: RunConfig
    output_dir: Path
    mesh: Mesh
    source: ModelSource
    data: dict[str, PreferenceDataset]
    """`train`, and `validation` where the configuration has a path for it."""
    model: PreferenceModel
    nemo: MegatronGPTPreferenceModel | None = None
    """NeMo's view of `model`, where a class was given."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What a resumed run must share with the one that saved a checkpoint."""

    @classmethod
    def build(
        cls,
        config: RunConfig,
        *,
        nemo_class: NemoClass | None = None,
        data: dict[str, PreferenceDataset] | None = None,
    ) -> Run:
        """Join the world, read data and weights, and build the model on every rank. Collective.

        Args:
            config: checked (`nemo_gdpo.config.validate`).
            nemo_class: also wrap the model in this class.
            data: tokenised pairs by split; None reads those of the configuration.

        Raises:
            UserError: on every rank, when the input or the configuration is wrong.
        """
        platform = current_platform()
        join_world(platform, timeout_minutes=config.trainer.collective_timeout_minutes)
        agree_on_config(config)
        layout = layout_of(config)
        mesh = on_every_rank(
            "building the mesh", lambda: build_mesh(layout, platform, seed=config.seed)
        )
        output_dir = Path(config.output_dir).absolute()
        source = open_source(
            str(config.model.restore_from_path),
            mesh,
            divisible_by=config.model.make_vocab_size_divisible_by,
            cache_converted=config.model.cache_converted,
        )
        identity = identity_of(config, source.fingerprint)
        refuse_another_run(output_dir, identity)
        _write_config(config, output_dir)
        if data is None:
            data = _load_data(config, source, output_dir)
        train = data["train"]
        on_every_rank("counting the pairs", lambda: _refuse_too_few(config, train))
        model = on_every_rank(
            "building the model",
            lambda: PreferenceModel(
                config,
                objective=build_objective(config.objective),
                model_config=source.model_config,
                layout=layout,
                end_token_id=train.end_token_id,
            ),
        )
        source.load_into(model)
        nemo = on_every_rank(
            "building NeMo's model", lambda: nemo_class(config, model) if nemo_class else None
        )
        identity |= {
            "total_steps": total_steps(config, len(train)),
            "end_token_id": train.end_token_id,
        }
        return cls(config, output_dir, mesh, source, data, model, nemo, identity)

    def say(self, text: str) -> None:
        """Print a line for the user, from the main rank."""
        if self.mesh.is_main:
            print(text, flush=True)

    def stop_request(self) -> StopRequest:
        """A context in which signals ask the run to stop at the next step boundary."""
        return StopRequest()

    def batches(self, data: PreferenceDataset) -> BatchBuilder:
        """Micro-batches of `data` for this rank."""
        return BatchBuilder(
            pairs=data,
            pad_token_id=data.pad_token_id,
            layout=self.mesh.layout,
            precision=self.config.precision,
            micro_batch_size=self.config.model.micro_batch_size,
            packing=self.config.data.packing,
            data_rank=self.mesh.data_rank,
            data_size=self.mesh.data_size,
            device=self.mesh.device,
        )

    # -- the reference ---------------------------------------------------------------------------

    def reference_key(self, data: PreferenceDataset) -> ReferenceKey:
        """What the reference log-probs of `data` depend on."""
        objective = self.model.objective
        columns = ["label"]
        temperature = objective.reference_eos_temperature
        if objective.needs_eos:
            columns += ["eos"] + (["tempered_eos"] if temperature != 1.0 else [])
        d = self.config.data
        return ReferenceKey(
            weights=self.source.fingerprint,
            data=data.fingerprint,
            template=str(data.settings.get("chat_template")),
            truncation=f"{d.truncation_mode} prompt {d.max_prompt_length} total {d.max_length}",
            precision=self.config.precision,
            eos_temperature=temperature,
            columns=tuple(columns),
        )

    def reference_store(self, name: str, stop: StopRequest) -> ReferenceStore:
        """The cached reference of a split, computed now if it is not there. Collective.

        Raises:
            Stopped: a signal came.
        """
        data = self.data[name]
        root = Path(self.config.reference_cache_dir or self.output_dir / "reference")
        directory = root / name
        store, reused = cached_reference(
            self.model, self.mesh, self.batches(data), directory, self.reference_key(data),
            global_batch_size=self.config.model.global_batch_size, stop=stop,
            label=f"reference {name}",
        )  # fmt: skip
        self.say(f"reference {name}: {'reused' if reused else 'computed'} {directory}")
        return store

    def _reference_stores(self, stop: StopRequest) -> References:
        on_every_rank("preparing the model", self.model.prepare_for_inference)
        return {name: self.reference_store(name, stop) for name in self.data}

    def prepare_reference(self, stop: StopRequest) -> References:
        """The caches of all splits, or a resident copy of the present weights. Collective.

        Raises:
            Stopped: a signal came.
        """
        if self.config.reference == "resident":
            on_every_rank("copying the reference", self.model.attach_resident_reference)
            return dict.fromkeys(self.data)
        return self._reference_stores(stop)

    def compute_reference(self) -> None:
        """Make the caches that a training run with this configuration would make, and leave.

        Raises:
            Stopped: a signal came.
        """
        with self.stop_request() as stop:
            self._reference_stores(stop)
        leave_world()

    # -- training --------------------------------------------------------------------------------

    def build_trainer(
        self,
        references: References,
        stop: StopRequest,
        trainer_class: type[PreferenceTrainer] = PreferenceTrainer,
    ) -> PreferenceTrainer:
        """Optimizer, scheduler, checkpoints and loop around the model as it now is. Collective.

        Args:
            references: of `prepare_reference`.
            stop: asked at every step.
            trainer_class: a class of yours that watches the loop.
        """
        config = self.config
        on_every_rank("preparing the model", self.model.prepare_for_training)
        optimizer = on_every_rank(
            "building the optimizer", lambda: build_optimizer(config, self.model.policy_chunks)
        )
        template = trained_template(self) if self.mesh.is_main else None
        checkpointer = Checkpointer(
            self.output_dir / "checkpoints", self.model, optimizer, self.mesh,
            write_assets=partial(write_assets, self, template),
            keep=config.trainer.keep_checkpoints,
        )  # fmt: skip
        splits = {
            name: Split(data, self.batches(data), references[name])
            for name, data in self.data.items()
        }
        steps = total_steps(config, len(self.data["train"]))
        return on_every_rank(
            "building the trainer",
            lambda: trainer_class(
                config, self.model, self.mesh, splits["train"], splits.get("validation"),
                optimizer, build_scheduler(config, optimizer, steps), checkpointer, stop,
                self.identity,
            ),
        )  # fmt: skip

    def fit(self, trainer: PreferenceTrainer) -> Outcome:
        """Resume from the newest valid checkpoint, if there is one, and train. Collective."""
        for line in resume(self.output_dir / "checkpoints", trainer):
            self.say(line)
        log = on_every_rank(
            "opening the loggers",
            lambda: MetricsLog(
                self.config.logger,
                self.output_dir,
                enabled=self.mesh.is_main,
                resume_step=trainer.progress.step,
            ),
        )
        with log:
            return trainer.fit(log)

    def train(self) -> Outcome:
        """Train as configured, and leave the world. Collective.

        On DONE the checkpoint, and the exports that were asked for, are on disk.

        Raises:
            UserError: an archive is asked for and there is no NeMo class.
        """
        if self.config.export_nemo and self.nemo is None:
            raise UserError(
                "export_nemo: this run has no NeMo class to write an archive with; build it with "
                "nemo_class=nemo_gdpo.nemo.classes.model_class(objective), or set export_nemo=false"
            )
        layout, objective = self.mesh.layout, self.config.objective.name
        shown = self.model if self.nemo is None else self.nemo
        self.say(
            f"{type(shown).__name__} {objective}, {self.mesh.world_size} ranks "
            f"(TP{layout.tensor} PP{layout.pipeline} CP{layout.context} DP{self.mesh.data_size}), "
            f"{self.config.precision}, {len(self.data['train'])} pairs"
        )
        with self.stop_request() as stop:
            try:
                references = self.prepare_reference(stop)
            except Stopped:
                leave_world()
                return Outcome.STOPPED
            trainer = self.build_trainer(references, stop)
            outcome = self.fit(trainer)
        if outcome is Outcome.DONE:
            self._export(trainer.checkpointer.newest(trainer.progress.step))
        leave_world()
        return outcome

    def _export(self, checkpoint: Path) -> None:
        """Write what was asked for besides the checkpoint. Collective."""
        if self.config.export_nemo:
            assert self.nemo is not None
            archive = self.output_dir / "model.nemo"
            self.nemo.model_card = on_every_rank("writing the card", lambda: model_card_of(self))
            self.nemo.save_to(str(archive))
            self.say(f"exported {archive}")
        if self.config.export_hf:
            # The others wait: all end with the status of the export.
            exported = from_main_rank(
                "exporting to Hugging Face", lambda: export_run(self, checkpoint)
            )
            self.say(f"exported {exported}")


def _write_config(config: RunConfig, output_dir: Path) -> None:
    """Write `config.yaml`, the record of the run. Collective; rank 0 writes.

    Raises:
        RunError: it cannot be written.
    """

    def write() -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "config.yaml").write_text(config_yaml(config), encoding="utf-8")

    def wrap(told: str) -> RunError:
        return RunError(
            f"{output_dir}/config.yaml could not be written ({told}); free space, fix the "
            "permissions or choose another output_dir, then start again"
        )

    from_main_rank("writing config.yaml", write, wrap=wrap)


def _refuse_too_few(config: RunConfig, train: PreferenceDataset) -> None:
    """Now, not after an hour of reference computation: is there one global batch of pairs?"""
    PreferenceSampler(len(train), config.data.seed, train.fingerprint).global_batch(
        0, config.model.global_batch_size
    )


def _load_data(
    config: RunConfig, source: ModelSource, output_dir: Path
) -> dict[str, PreferenceDataset]:
    found = {name: load_split(config, name, source, output_dir) for name in ("train", "validation")}
    return {name: data for name, data in found.items() if data is not None}
