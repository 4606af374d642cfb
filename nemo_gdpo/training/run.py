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

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nemo_gdpo.config.base import plain_data
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.control.watch import acting, computing
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.errors import Stopped, UserError
from nemo_gdpo.io.output_lock import OutputLock
from nemo_gdpo.launch import rank_log
from nemo_gdpo.launch.failures import say
from nemo_gdpo.launch.signals import ALL_SIGNALS, BEFORE_TRAINING, StopRequest, begun_at
from nemo_gdpo.launch.time_limit import time_limit
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.objectives import build_objective
from nemo_gdpo.platform import current_platform
from nemo_gdpo.precisions import DELAYED, DELAYED_IS_REFUSED, described
from nemo_gdpo.training.adapter_start import AdapterStart, open_start
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.checkpoint import Checkpointer
from nemo_gdpo.training.clock import MODEL, REFERENCE, TOKENISING, RunClock
from nemo_gdpo.training.datasets import DataPlan, given_data, plan_data
from nemo_gdpo.training.ending import export_what_is_wanted, is_export_wanted, summarise
from nemo_gdpo.training.export import STOPPED, trained_template, write_assets
from nemo_gdpo.training.first_look import refuse_bad_pairs
from nemo_gdpo.training.live_labels import LiveLabels
from nemo_gdpo.training.loggers import MetricsLog
from nemo_gdpo.training.mesh import Mesh, build_mesh, join_world, layout_of, leave_world
from nemo_gdpo.training.model_source import ModelSource, open_source
from nemo_gdpo.training.optimizer import build_optimizer, build_scheduler
from nemo_gdpo.training.other_reference import being_reference, open_reference
from nemo_gdpo.training.parts import Outcome, Split, total_steps
from nemo_gdpo.training.record import begin_logs, lock_output, refuse_length, write_record
from nemo_gdpo.training.reference import cached_reference
from nemo_gdpo.training.reference_key import Cut, ReferenceKey, model_identity, reference_key
from nemo_gdpo.training.reference_store import ReferenceStore, refuse_foreign
from nemo_gdpo.training.resume import (
    REFERENCE_WEIGHTS,
    Newest,
    agree_on_config,
    find_newest,
    identity_of,
    refuse_another_run,
    refuse_unreadable_metrics,
    resume,
)
from nemo_gdpo.training.signals import first_save, stopped_together
from nemo_gdpo.training.trainer import PreferenceTrainer

if TYPE_CHECKING:
    from nemo_gdpo.nemo.model import MegatronGPTPreferenceModel

References = Mapping[str, ReferenceStore | None]
"""Split -> its cached reference; None where the model computes it at every step."""


class NemoClass(Protocol):
    """NeMo's class around a model; `train` passes one, nothing else needs nemo."""

    def __call__(self, config: RunConfig, core: PreferenceModel) -> MegatronGPTPreferenceModel: ...


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
    newest: Newest | None = None
    """The checkpoint to resume from, as the start of the run has found it."""
    clock: RunClock = field(default_factory=RunClock)
    loading_seconds: float = 0.0
    """Of the base weights."""
    lock: OutputLock | None = None
    """On output_dir, on the main rank, until the run leaves."""
    start: AdapterStart | None = None
    """What training starts from: the base, and an adapter where one is given."""
    other: ModelSource | None = None
    """The reference, where that is another model."""
    trainer: PreferenceTrainer | None = None
    """Once `train` has come so far."""

    @classmethod
    def build(
        cls,
        config: RunConfig,
        *,
        nemo_class: NemoClass | None = None,
        data: dict[str, PreferenceDataset] | None = None,
    ) -> Run:
        """Join the world, read data and weights, and build the model on every rank. Collective.

        All that can be refused is looked at before anything is written to `output_dir`.

        Args:
            config: checked (`nemo_gdpo.config.validate`).
            nemo_class: also wrap the model in this class.
            data: tokenised pairs by split; None reads those of the configuration.

        Raises:
            UserError: on every rank, when the input or the configuration is wrong, another run's
                results are in `output_dir`, or another job is at work there.
        """
        clock = RunClock()
        platform = current_platform()
        join_world(platform, timeout_minutes=config.trainer.collective_timeout_minutes)
        agree_on_config(config)
        layout = layout_of(config)
        mesh = on_every_rank(
            "building the mesh", lambda: build_mesh(layout, platform, seed=config.seed)
        )
        output_dir = Path(config.output_dir).absolute()
        lock = lock_output(output_dir)
        try:
            run, plan = cls._planned(config, output_dir, mesh, nemo_class, data, clock)
            run.lock = lock
            run._write(plan)
        except BaseException:
            if lock is not None:
                lock.undo()
            raise
        return run

    @classmethod
    def _planned(
        cls,
        config: RunConfig,
        output_dir: Path,
        mesh: Mesh,
        nemo_class: NemoClass | None,
        data: dict[str, PreferenceDataset] | None,
        clock: RunClock,
    ) -> tuple[Run, DataPlan]:
        """The run, with nothing written, and the data that are still to be written. Collective.

        Raises:
            UserError: on every rank; everything is as it was.
        """
        clock.enter(MODEL)
        if data is None:
            from_main_rank("looking at the pairs", lambda: refuse_bad_pairs(config))
        source = open_source(
            str(config.model.restore_from_path),
            mesh,
            divisible_by=config.model.make_vocab_size_divisible_by,
            cache_converted=config.model.cache_converted,
        )
        start = open_start(config, source)
        other = open_reference(config, start, mesh)
        identity = identity_of(config, start.fingerprint)
        identity["settings"] |= {REFERENCE_WEIGHTS: None if other is None else other.fingerprint}
        identity |= model_identity(start.fingerprint, source.model_config)
        earlier = refuse_another_run(output_dir, identity)
        from_main_rank("reading the metrics", lambda: refuse_unreadable_metrics(output_dir))
        newest = find_newest(
            output_dir / "checkpoints", identity, full=config.trainer.verify_checkpoint == "full"
        )
        clock.enter(TOKENISING)
        if data is None:
            plan = plan_data(config, source, output_dir, earlier.date)
        else:
            plan = given_data(config, data)
        clock.enter(MODEL)
        train = plan.splits["train"]
        on_every_rank("counting the pairs", lambda: refuse_length(config, train))
        identity["settings"] |= {"data.date": plan.date}
        identity |= {
            "data": plan.fingerprints,
            "total_steps": total_steps(config, train.pairs),
            "end_token_id": train.end_token_id,
        }

        def compare() -> None:
            earlier.refuse_other_data(train, config.data)
            earlier.refuse_another(identity)
            newest.refuse_shorter(identity["total_steps"])

        from_main_rank("comparing the data", compare)
        model = on_every_rank(
            "building the model",
            lambda: PreferenceModel(
                config,
                objective=build_objective(config.objective),
                model_config=source.model_config,
                layout=mesh.layout,
                end_token_id=train.end_token_id,
            ),
        )
        took = source.load_into(model)
        start.load_into(model)
        on_every_rank("quantising the base", model.quantise_base)
        nemo = on_every_rank(
            "building NeMo's model", lambda: nemo_class(config, model) if nemo_class else None
        )
        run = cls(
            config, output_dir, mesh, source, data or {}, model, nemo, identity, newest, clock, took
        )
        run.start, run.other = start, other
        from_main_rank("looking for another run's reference", lambda: run._refuse_foreign(plan))
        return run, plan

    def _refuse_foreign(self, plan: DataPlan) -> None:
        """Refuse a reference cache that is there and of something else.

        Raises:
            UserError: naming what differs.
        """
        if self.config.reference == "cache":
            for name, data in plan.here.items():
                key = self.reference_key(data)
                refuse_foreign(self.reference_directory(name, key), key)

    def _write(self, plan: DataPlan) -> None:
        """Write the record of the run and its data. Collective."""
        write_record(self.config, self.identity, self.output_dir)
        begin_logs(self.config, self.output_dir, self.mesh, self.model.platform, self.clock)
        if not self.data:
            self.data = plan.write(self.output_dir)

    def say(self, text: str) -> None:
        """Print a line for the user, from the main rank."""
        if self.mesh.is_main:
            print(text, flush=True)
            rank_log.record(text)

    def stop_request(self) -> StopRequest:
        """A context in which signals end the run: a loop at its next boundary, all else at once.

        Raises:
            UserError: the environment names an end of the job that is no time.
        """
        limit = time_limit(os.environ, self.config.trainer.max_minutes, begun=begun_at())
        return StopRequest(ALL_SIGNALS, interrupts=BEFORE_TRAINING, limit=limit)

    def batches(self, data: PreferenceDataset) -> BatchBuilder:
        """Micro-batches of `data` for this rank."""
        return BatchBuilder.of(self.config, data, self.mesh)

    # -- the reference ---------------------------------------------------------------------------

    def reference_key(self, data: PreferenceDataset) -> ReferenceKey:
        """What the reference log-probs of `data` depend on."""
        return reference_key(
            self.config,
            self.model,
            weights=self.reference_weights,
            data=data.fingerprint,
            template=str(data.settings.get("chat_template")),
        )

    @property
    def weights(self) -> str:
        """Fingerprint of what training starts from."""
        assert self.start is not None
        return self.start.fingerprint

    @property
    def reference_weights(self) -> str:
        """Fingerprint of the reference."""
        return self.weights if self.other is None else self.other.fingerprint

    @property
    def starts_at_reference(self) -> bool:
        """Whether policy and reference are one model before the first update."""
        return self.other is None or self.other.fingerprint == self.weights

    def reference_directory(self, name: str, key: ReferenceKey) -> Path:
        """Place of the cache of a split; in a directory that runs share each key has its own."""
        shared = self.config.reference_cache_dir
        if shared is None:
            return self.output_dir / "reference" / name
        return Path(shared).absolute() / f"{name}-{key.digest()[:16]}"

    def reference_store(self, name: str, stop: StopRequest) -> ReferenceStore:
        """The cached reference of a split, computed now if it is not there. Collective.

        Raises:
            Stopped: a signal came.
        """
        data = self.data[name]
        key = self.reference_key(data)
        directory = self.reference_directory(name, key)
        with computing(f"the reference of {name}"):
            store, reused = cached_reference(
                self.model, self.mesh, self.batches(data), directory, key,
                cut=Cut.of(self.config, self.mesh.data_size), stop=stop, label=f"reference {name}",
            )  # fmt: skip
        self.say(f"reference {name}: {'reused' if reused else 'computed'} {directory}")
        return store

    def _reference_stores(self, stop: StopRequest) -> References:
        self.clock.enter(REFERENCE)
        on_every_rank("preparing the model", self.model.prepare_for_inference)
        found = [self.reference_directory(n, self.reference_key(d)) for n, d in self.data.items()]
        assert self.start is not None
        with being_reference(self.model, self.start, self.other, found):
            return {name: self.reference_store(name, stop) for name in self.data}

    def prepare_reference(self, stop: StopRequest) -> References:
        """The caches of all splits, or none, and a copy of the present weights. Collective.

        Raises:
            Stopped: a signal came.
        """
        if self.config.reference == "cache":
            return self._reference_stores(stop)
        attach = {
            "resident": self.model.attach_resident_reference,
            "swap": self.model.attach_swapped_reference,
        }.get(self.config.reference)
        if attach is not None:
            self.clock.enter(REFERENCE)
            on_every_rank("copying the reference", attach)
        return dict.fromkeys(self.data)

    def compute_reference(self) -> None:
        """Make the caches that a training run with this configuration would make, and leave.

        Raises:
            Stopped: a signal came, or the time is up; what was computed is kept.
        """
        with self.holding_output():
            try:
                with self.stop_request() as stop:
                    self._reference_stores(stop)
            except Stopped as error:
                if error.agreed:
                    leave_world()
                raise
            self.clock.note(ended=Outcome.DONE.value)
        leave_world()

    @contextlib.contextmanager
    def holding_output(self) -> Iterator[None]:
        """Inside the block output_dir is this run's; afterwards another job may have it."""
        try:
            yield
        finally:
            if self.lock is not None:
                self.lock.release()

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
        self.clock.enter(MODEL)
        on_every_rank("preparing the model", self.model.prepare_for_training)
        optimizer = on_every_rank(
            "building the optimizer", lambda: build_optimizer(config, self.model.policy_chunks)
        )
        template = trained_template(self) if self.mesh.is_main else None
        checkpointer = Checkpointer(
            self.output_dir / "checkpoints", self.model, optimizer, self.mesh,
            write_assets=partial(write_assets, self, template),
            keep=config.trainer.keep_checkpoints, in_background=config.trainer.async_save,
            full_check=config.trainer.verify_checkpoint == "full",
        )  # fmt: skip
        splits = {
            name: Split(data, self.batches(data), references[name])
            for name, data in self.data.items()
        }
        steps = total_steps(config, len(self.data["train"]))
        trainer = on_every_rank(
            "building the trainer",
            lambda: trainer_class(
                config, self.model, self.mesh, splits["train"], splits.get("validation"),
                optimizer, build_scheduler(config, optimizer, steps), checkpointer, stop,
                self.identity,
            ),
        )  # fmt: skip
        trainer.clock = self.clock
        trainer.starts_at_reference = self.starts_at_reference
        if config.label.ledger is not None:
            labels = LiveLabels(config, self.data["train"], self.weights, is_main=self.mesh.is_main)
            trainer.ask_people(labels)
        trainer.stopping.expect_save(first_save(self.loading_seconds, self.mesh.data_size))
        return trainer

    def fit(self, trainer: PreferenceTrainer) -> Outcome:
        """Resume from the newest valid checkpoint, if there is one, and train. Collective."""
        for line in resume(self.output_dir / "checkpoints", trainer, self.newest):
            self.say(line)
        log = on_every_rank(
            "opening the loggers",
            lambda: MetricsLog(
                self.config.logger,
                self.output_dir,
                enabled=self.mesh.is_main,
                resume_step=trainer.logged_steps,
                settings=plain_data(self.config),
            ),
        )
        with log, trainer.checkpointer, acting("training"):
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
            f"{described(self.config.precision)}, {len(self.data['train'])} pairs"
        )
        if self.config.precision == DELAYED:
            self.say(f"warning: {DELAYED_IS_REFUSED}")
        with self.holding_output():
            try:
                with self.stop_request() as stop:
                    outcome = self._train(stop)
            except Stopped as error:
                if not error.agreed:
                    raise
                self._say_stopped(str(error))
                outcome = Outcome.STOPPED
            summarise(self, outcome)
        leave_world()
        return outcome

    def _train(self, stop: StopRequest) -> Outcome:
        """The parts of `train`; raises `Stopped`, or has said why it ends."""
        references = self.prepare_reference(stop)
        self.trainer = trainer = self.build_trainer(references, stop)
        outcome = self.fit(trainer)
        step, last = trainer.progress.step, trainer.total_steps
        if outcome is Outcome.STOPPED:
            kept = (
                f"after {step} of {last} steps; the checkpoint "
                f"{trainer.checkpointer.newest(step)} is written, and the same command goes on "
                "from there"
                if step
                else f"before the first of {last} steps; the same command starts again"
            )
            waits = trainer.supply.waiting_for
            stopped = f"by {trainer.stopping.why}" if waits is None else f"(no batch): {waits};"
            self._say_stopped(f"stopped {stopped} {kept}")
        elif is_export_wanted(self.config):
            stop.interrupts = STOPPED.replace("{steps}", str(last))
            why = trainer.stopping.due()  # it may have come in the last step
            if why is not None:
                raise stopped_together(stop.interrupts.replace("{signal}", why))
            export_what_is_wanted(self, trainer.checkpointer.newest(step))
        return outcome

    def _say_stopped(self, text: str) -> None:
        if self.mesh.is_main:
            say(text)
