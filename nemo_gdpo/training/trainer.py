"""The loop: global batches through the schedule, checks, update, metrics, checkpoints, signals."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_gdpo.config.objective import ADPOSettings
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank
from nemo_gdpo.control.watch import computing
from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.preference_model import LOSS, PreferenceModel
from nemo_gdpo.progress import progress_bar
from nemo_gdpo.training.checkpoint import Checkpointer
from nemo_gdpo.training.clock import CHECKPOINTS, TRAINING, VALIDATION, RunClock
from nemo_gdpo.training.console import StepReport
from nemo_gdpo.training.live_labels import LiveLabels
from nemo_gdpo.training.loggers import MetricsLog
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.metrics import (
    CHECKPOINT_SECONDS,
    PADDING,
    PEAK_MEMORY,
    PEAK_MEMORY_OF_ALL,
    SHARED,
    SKIPPED_STEPS,
    VALIDATION_SECONDS,
    NotFiniteError,
    gather_per_pair,
    note_skipped,
    reduce_metrics,
    refuse_not_finite,
)
from nemo_gdpo.training.parts import Outcome, Progress, Split, metric_names, total_steps
from nemo_gdpo.training.queries import QueryCount
from nemo_gdpo.training.rounding import measure_noise
from nemo_gdpo.training.sanity import check_step0_loss, step0_inputs
from nemo_gdpo.training.signals import Stopping
from nemo_gdpo.training.supply import AllPairs, LabelledPairs, Supply
from nemo_gdpo.training.throughput import Speedometer


class PreferenceTrainer:
    """Trains one model with one objective on one mesh."""

    def __init__(
        self,
        config: RunConfig,
        model: PreferenceModel,
        mesh: Mesh,
        train: Split,
        validation: Split | None,
        optimizer: Any,
        scheduler: Any,
        checkpointer: Checkpointer,
        stop: StopRequest,
        identity: dict[str, Any],
    ) -> None:
        """Bind the parts; see `nemo_gdpo.training.run` for how they are made.

        Args:
            identity: what a resumed run must share with the saved one; kept in checkpoints.
        """
        self.config = config
        self.model = model
        self.mesh = mesh
        self.train = train
        self.validation = validation
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.checkpointer = checkpointer
        self.stop = stop
        self.stopping = Stopping(stop)
        self.identity = identity
        self.batch_size: int = config.model.global_batch_size
        self.sampler = PreferenceSampler.of(config.data, len(train.data), train.data.fingerprint)
        self.supply: Supply = AllPairs(self.sampler, self.batch_size)
        self.labels: LiveLabels | None = None
        self.names = metric_names(model.objective)
        self.total_steps = total_steps(config, len(train.data))
        self.progress = Progress(queries=QueryCount(len(train.data)))
        self._last_saved = -1
        self._batch: list[int] | None = None
        """The global batch that the next update trains on, once it was asked for."""
        self._entry: dict[str, Any] | None = None
        """The line of the newest update, while its validation was stopped and is still to come."""
        self.clock = RunClock()
        """Of the run, once `Run.build_trainer` has put it here."""
        self.speed = Speedometer.of(
            model.model_config,
            devices=mesh.world_size,
            live_reference=train.store is None,
            device=model.platform.device_name(),
            precision=config.precision,
            configured_peak=config.logger.peak_tflops,
            prefix_sharing=config.data.prefix_sharing,
            frozen=model.adapter is not None,
        )
        self._data_seconds = 0.0
        self.starts_at_reference = True
        """Whether policy and reference are one model before the first update."""

    def ask_people(self, labels: LiveLabels) -> None:
        """Train on the verdicts of a ledger instead of the data's. Call before `restore`."""
        self.labels = labels
        self.train = dataclasses.replace(
            self.train, builder=dataclasses.replace(self.train.builder, oracle=labels.of)
        )
        objective = self.config.objective
        assert isinstance(objective, ADPOSettings)
        self.supply = LabelledPairs(
            self.sampler, self.batch_size, self.total_steps * self.batch_size, labels,
            self._margins, objective.gamma, self.config.label.most_open,
        )  # fmt: skip

    def _margins(self, indices: Sequence[int]) -> list[float] | None:
        """beta h of pairs under the present weights; None where the run is to stop. Collective."""
        assert self.labels is not None
        self.labels.at_step(self.progress.step)
        if self.stopping.due():
            return None
        filled = [*indices, *[SENTINEL] * (self.batch_size - len(indices))]
        with computing(f"the margins at step {self.progress.step}"):
            per_pair = self._per_pair(self.train, filled, forward_only=True)
        per_pair = {name: values[: len(indices)] for name, values in per_pair.items()}
        refuse_not_finite(per_pair, [self.train.data[i].id for i in indices], self.progress.step)
        return [float(margin) for margin in per_pair["rewards/margins"].tolist()]

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that a resume needs besides tensors; plain JSON."""
        unlogged = {} if self._entry is None else {"unlogged": self._entry}
        return unlogged | {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "skipped_steps": self.progress.skipped,
            "queries": self.progress.queries.state(),
            "scheduler_steps": self.scheduler.num_steps,
            "sampler": self.sampler.state_dict(),
            "supply": self.supply.state(),
            "world_size": self.mesh.world_size,
            "identity": self.identity,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the tensors are loaded already."""
        self.sampler.load_state_dict(state["sampler"])
        if self.labels is not None:
            self.supply.restore(state["supply"])
        self.progress.step = state["step"]
        self.progress.tokens = state["tokens"]
        self.progress.skipped = state.get("skipped_steps", 0)  # a checkpoint from before there were
        self.progress.queries.restore(state["queries"])
        self.scheduler.num_steps = state["scheduler_steps"]
        self._entry = state.get("unlogged")
        # What lacks a validation is written once more, when it has it.
        self._last_saved = state["step"] if self._entry is None else -1

    @property
    def logged_steps(self) -> int:
        """Updates whose lines are complete."""
        return self.progress.step - (self._entry is not None)

    def save(self) -> None:
        """Write a checkpoint of the present step, unless it is there already."""
        if self._last_saved != self.progress.step:
            with self.stopping.saving(), self.clock.within(CHECKPOINTS):
                self.checkpointer.save(self.progress.step, self.state())
            self.stopping.note_save(sum(self.checkpointer.timings.values()))
            self._last_saved = self.progress.step
            self.clock.note(self.progress.step, force=True)

    # -- one step ------------------------------------------------------------------------------

    def _with_reference(
        self, split: Split, micro_batches: list[PreferenceMicroBatch]
    ) -> list[PreferenceMicroBatch]:
        if split.store is not None:
            return micro_batches
        outputs = self.model.get_reference_logprobs(micro_batches)
        if not outputs:  # not the last pipeline stage: no loss is computed here
            return micro_batches
        return [
            dataclasses.replace(micro_batch, reference_TC=values)
            for micro_batch, values in zip(micro_batches, outputs, strict=True)
        ]

    def _per_pair(
        self, split: Split, indices: list[int], *, forward_only: bool
    ) -> dict[str, torch.Tensor]:
        begun = time.perf_counter()
        built = split.builder.build(indices, split.store)
        self._data_seconds = time.perf_counter() - begun
        micro_batches = self._with_reference(split, built)
        results = self.model.get_loss_and_metrics(micro_batches, forward_only=forward_only)
        return gather_per_pair(
            results,
            self.names,
            self.batch_size,
            contributes=self.model.holds_loss,
            device=self.mesh.device,
        )

    def _check_step0(self, indices: list[int], per_pair: dict[str, torch.Tensor]) -> None:
        pairs = [self.train.data[i] for i in indices]
        micro_batches = self.train.builder.build(indices, None)
        check_step0_loss(
            self.model.objective,
            step0_inputs(pairs, per_pair, together=self.config.data.pairs_of_group),
            per_pair,
            [p.id for p in pairs],
            noise=measure_noise(self.model, micro_batches, batch_size=self.batch_size),
        )

    def _update(self, step: int, pair_ids: list[str]) -> tuple[float, float]:
        """Clip and update; returns (gradient norm before clipping, learning rate used).

        Raises:
            NotFiniteError: before anything is changed.
        """
        # First: at the schedule's step 0 a warm-up has learning rate 0.
        self.scheduler.step(increment=1)
        # Not left to `step`: the norm has to be checked before anything changes.
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        # Agreed by all: who alone left an update out would have other weights.
        worst = torch.tensor([not math.isfinite(grad_norm)], dtype=torch.float32)
        worst = worst.to(self.mesh.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        if bool(worst.item()):
            raise NotFiniteError(
                f"step {step}: the gradient norm is {grad_norm}; the weights were not changed; "
                f"pairs of this batch: {', '.join(pair_ids[:8])}"
                f"{' and more' if len(pair_ids) > 8 else ''}",
                may_skip=True,
            )
        self.optimizer.step()
        return grad_norm, float(self.optimizer.param_groups[0]["lr"])

    def train_step(self) -> dict[str, Any]:
        """One update, made or left out. Returns the line for the log.

        Raises:
            NotFiniteError: something is not finite, and no further update may be left out.
        """
        indices = self.supply.next_batch() if self._batch is None else self._batch
        self._batch = None
        assert indices is not None, self.supply.waiting_for
        step, begun = self.progress.step, time.perf_counter()
        pair_ids = [self.train.data[i].id for i in indices]
        self.model.prepare_for_training_step()
        self.optimizer.zero_grad()
        per_pair = self._per_pair(self.train, indices, forward_only=False)
        try:
            refuse_not_finite(per_pair, pair_ids, step)
            # Policy and reference are one model until the first update that was made.
            first = step == self.progress.skipped and self.starts_at_reference
            if first and self.config.trainer.check_initial_loss:
                self._check_step0(indices, per_pair)
            grad_norm, learning_rate = self._update(step, pair_ids)
        except NotFiniteError as error:
            return self._leave_out(step, pair_ids, error)
        pairs = [self.train.data[i] for i in indices]
        tokens = _count_tokens(pairs)
        self.progress.step += 1
        self.progress.tokens += tokens
        seconds = time.perf_counter() - begun
        entry: dict[str, Any] = {
            "step": step,
            **reduce_metrics(self.model.objective, per_pair, self.batch_size),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "consumed_pairs": self.sampler.consumed_pairs,
            "epoch": self.sampler.consumed_pairs / len(self.train.data),
            "num_tokens": self.progress.tokens,
            SKIPPED_STEPS: self.progress.skipped,
            **self.speed.columns(pairs, tokens, seconds, self._data_seconds),
            **self._memory(),
            **self._fill(indices, pairs, tokens),
        }
        queries = self.model.objective.label_queries
        if queries is not None:
            self.progress.queries.record(indices, per_pair[queries])
            entry[f"{self.config.objective.name}/queries_total"] = self.progress.queries.total
        return entry | self.supply.metrics()

    def _leave_out(self, step: int, pair_ids: list[str], error: NotFiniteError) -> dict[str, Any]:
        """Go on without an update: weights and optimizer stay, data and schedule move on.

        It is noted first, also if it ends the run.

        Returns:
            The line for the log, without what was not computed.

        Raises:
            NotFiniteError: the reference is not finite, or too many were left out already.
        """
        limit = self.config.trainer.max_skipped_steps
        from_main_rank(
            "noting a skipped step",
            lambda: note_skipped(Path(self.config.output_dir), step, pair_ids, error),
        )
        if not error.may_skip or self.progress.skipped >= limit:
            if error.may_skip and limit:
                raise error.after(limit) from error
            raise error
        self.progress.skipped += 1
        if self.mesh.is_main:
            print(f"left out ({self.progress.skipped} of at most {limit}): {error}", flush=True)
        self.scheduler.step(increment=step + 1 - self.scheduler.num_steps)
        self.progress.step += 1
        return {
            "step": step,
            "consumed_pairs": self.sampler.consumed_pairs,
            "epoch": self.sampler.consumed_pairs / len(self.train.data),
            "num_tokens": self.progress.tokens,
            SKIPPED_STEPS: self.progress.skipped,
        }

    def _memory(self) -> dict[str, float]:
        """High-water marks: of the worst rank, and of all ranks together, GiB."""
        own = self.model.platform.peak_memory_bytes() / 2**30
        values = torch.zeros(self.mesh.world_size, device=self.mesh.device)
        values[self.mesh.rank] = own
        dist.all_reduce(values)
        return {
            PEAK_MEMORY: float(values.max()),
            PEAK_MEMORY_OF_ALL: float(values.sum()),
        }

    def _fill(
        self, indices: list[int], pairs: list[TokenizedPair], tokens: int
    ) -> dict[str, float]:
        """How well the positions of a global batch were used."""
        builder = self.train.builder
        computed = sum(builder.computed_tokens(pair) for pair in pairs)
        found = {PADDING: 1.0 - computed / builder.token_slots(indices)}
        return found | ({SHARED: 1.0 - computed / tokens} if builder.prefix_sharing else {})

    # -- validation ----------------------------------------------------------------------------

    def validate(self) -> dict[str, float] | None:
        """Mean metrics over the validation pairs, `val/` before their names; None when stopped."""
        assert self.validation is not None
        joined = self.forward_all(
            self.validation,
            label="validate",
            doing=f"validation at step {self.progress.step}",
            limit=self.config.trainer.limit_val_batches,
        )
        if joined is None:
            return None
        means = reduce_metrics(self.model.objective, joined, len(joined[LOSS]))
        return {f"val/{name}": value for name, value in means.items()}

    def forward_all(
        self, split: Split, *, label: str, doing: str, limit: int | None = None
    ) -> dict[str, torch.Tensor] | None:
        """Loss and metrics of every pair of a split, on every rank. Collective.

        Args:
            split: whose pairs they are.
            label: of the progress bar.
            doing: what a rank that hangs is said to be at.
            limit: global batches to look at; None is all.

        Returns:
            name -> float32 [pairs], in the order of the data; None when stopped.

        Raises:
            NotFiniteError: a loss or a log-prob is not finite.
        """
        data = split.data
        sampler = PreferenceSampler(len(data), 0, data.fingerprint)
        batches = list(sampler.validation_batches(self.batch_size, limit))
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in self.names}
        with progress_bar(
            total=len(batches), unit="batch", label=label, enabled=self.mesh.is_main
        ) as bar:
            for indices in batches:
                if self.stopping.due():
                    return None
                real = sum(index != SENTINEL for index in indices)
                with computing(doing):
                    per_pair = self._per_pair(split, indices, forward_only=True)
                ids = [data[i].id for i in indices[:real]]
                per_pair = {name: values[:real] for name, values in per_pair.items()}
                refuse_not_finite(per_pair, ids, self.progress.step)
                for name, values in per_pair.items():
                    columns[name].append(values)
                bar.update()
        return {name: torch.cat(parts) for name, parts in columns.items()}

    # -- the loop ------------------------------------------------------------------------------

    def _due(self, interval: int | None) -> bool:
        return bool(interval) and self.progress.step % int(interval or 1) == 0

    def _next_line(self, saved: dict[str, float]) -> dict[str, Any] | None:
        """The line of an update that is made now, or of one that still waits for its validation.

        None where there is no batch to train on, or the run is to stop.
        """
        entry, self._entry = self._entry, None
        if entry is not None:
            return entry
        self._batch = self.supply.next_batch()
        if self._batch is None:
            return None
        with computing(f"step {self.progress.step}"):
            return self.train_step() | saved

    def _stopped(self) -> Outcome:
        if self.progress.step:  # before the first update there is nothing to keep
            self.save()
        return Outcome.STOPPED

    def fit(self, log: MetricsLog) -> Outcome:
        """Train to the end, or to the step boundary after a signal or before the time is up."""
        self.clock.enter(TRAINING)
        self.clock.note(self.progress.step)
        every, saved = self.config.logger.every_n_steps, dict[str, float]()
        with (
            self.stop.deferred(),
            StepReport(
                self.total_steps, self.logged_steps, every=every, enabled=self.mesh.is_main
            ) as report,
        ):
            while self.logged_steps < self.total_steps:
                self.checkpointer.poll()
                # Agreed by all: a rank that stopped alone would leave the others waiting for it.
                if self.stopping.due():
                    return self._stopped()
                entry = self._next_line(saved)
                if entry is None:
                    return self._stopped()
                last = self.progress.step == self.total_steps
                if self.validation is not None and (
                    last or self._due(self.config.trainer.val_check_interval)
                ):
                    with self.clock.within(VALIDATION):
                        means = self.validate()
                    if means is None:  # stopped: the next turn saves, and the line with it
                        self._entry = entry
                        continue
                    entry |= means
                    entry[VALIDATION_SECONDS] = self.clock.latest[VALIDATION]
                log.write(entry)
                report.step(entry)
                self.clock.note(self.progress.step)
                saved = {}
                if last or self._due(self.config.trainer.save_interval):
                    log.flush()
                    self.save()
                    saved = {CHECKPOINT_SECONDS: self.clock.latest[CHECKPOINTS]}
        return Outcome.DONE


def _count_tokens(pairs: Sequence[TokenizedPair]) -> int:
    """Tokens of both sequences of every pair."""
    return sum(len(prompt) + len(said.ids) for p in pairs for prompt, said in p.sequences)
