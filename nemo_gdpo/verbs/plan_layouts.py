"""What a run would need and take on a cluster, in its own layout and in others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from nemo_gdpo.config.memory import positions_of, setup_of
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.recipes import change
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.validate import problems
from nemo_gdpo.config.world import data_parallel_size
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.plan.hardware import Cluster
from nemo_gdpo.plan.memory import RECOMPUTE, Memory, Setup, fullest, memory_of_stages
from nemo_gdpo.plan.shape import Shape
from nemo_gdpo.plan.speed import Step, Work, step_of
from nemo_gdpo.training.forecast import Architecture, batches_of, work_of

MESH = (
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.context_parallel_size",
)
MICRO = "model.micro_batch_size"
RECOMPUTED = "model.activations_checkpoint_granularity"
OF_LAYOUT = ("model", "trainer.devices", "data.max_length", "data.pack", "precision")
"""Beginnings of keys whose problems another layout may not have."""
SIZES = (1, 2, 4, 8)
LOOKED_AT, IN_SEARCH = 64, 4
"""Global batches that a prediction is the mean of."""


@dataclass(frozen=True)
class Prediction:
    """A run on a cluster."""

    config: RunConfig
    setup: Setup
    stages: list[Memory]
    work: Work
    step: Step | None
    """None where no speed is predicted."""
    memory: float
    """Bytes of the device."""

    @property
    def fits(self) -> bool:
        """Whether the fullest stage does."""
        return fullest(self.stages).total <= self.memory

    @property
    def tokens_per_second(self) -> float:
        """Of real tokens, on all devices; 0 where no speed is predicted."""
        return 0.0 if self.step is None else self.work.tokens / self.step.seconds

    @property
    def attention(self) -> float:
        """Part of the forward pass that no weight takes part in."""
        return self.work.attention / self.work.flops

    @property
    def rank(self) -> tuple[float, float]:
        """What is better is greater: speed, and where none is predicted, memory that is left."""
        return self.tokens_per_second, -fullest(self.stages).total


@dataclass(frozen=True)
class Planner:
    """Predicts runs of one model and one data set."""

    architecture: Architecture
    data: PreferenceDataset
    cluster: Cluster

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return self.architecture.shape

    def placed(self, config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
        """The run on the cluster, with other values under some keys."""
        cluster = self.cluster
        place = {"trainer.devices": cluster.per_node, "trainer.num_nodes": cluster.nodes}
        return change(config, {**place, **changes})

    def problems(self, config: RunConfig) -> list[Problem]:
        """Why the layout cannot be had."""
        # Packed rows share prompts or not by the mesh; padded ones never do.
        shared = ("data.prefix_sharing",) if config.data.packing else ()
        of_layout = (*OF_LAYOUT, *shared)
        return [one for one in self.all_problems(config) if one.key.startswith(of_layout)]

    def all_problems(self, config: RunConfig) -> list[Problem]:
        """What is wrong with a run, whatever files are there."""
        named = {
            key: value or "elsewhere"
            for key, value in (
                ("model.restore_from_path", config.model.restore_from_path),
                ("data.train_path", config.data.train_path),
                ("data.validation_path", config.data.validation_path),
            )
        }
        sizes = {
            "num_attention_heads": self.shape.heads,
            "num_key_value_heads": self.shape.groups,
            "num_hidden_layers": self.shape.layers,
            "hidden_size": self.shape.hidden,
            "intermediate_size": self.shape.ffn,
            "head_dim": self.shape.head,
        }
        # Memory is what this shows: without a vocabulary the check of it has no opinion.
        bare = change(config, {**named, "model.architecture": None})
        return problems(bare, None, sizes, files=False)

    def predict(self, config: RunConfig, most: int = LOOKED_AT) -> Prediction:
        """A run whose layout can be had.

        Args:
            config: placed on the cluster.
            most: global batches that are looked at.
        """
        batches = batches_of(config, self.data, most)
        work = work_of(config, self.data, batches, self.architecture.flops, self.cluster.count)
        return self._with_work(config, work)

    def _with_work(self, config: RunConfig, work: Work) -> Prediction:
        copies = data_parallel_size(config, self.cluster.count)
        assert copies is not None
        setup = setup_of(config, copies)
        live = config.reference != "cache"
        return Prediction(
            config=config,
            setup=setup,
            stages=memory_of_stages(self.shape, setup),
            work=work,
            step=step_of(
                self.shape, setup, work, self.cluster,
                live_reference=live, overlapped=config.optim.overlap_grad_reduce,
            ),
            memory=self.cluster.device.memory * 1e9,
        )  # fmt: skip

    def meshes(self) -> Iterator[tuple[int, int, int]]:
        """TP, PP and CP that divide the model and the devices; TP within a node."""
        for tensor, pipeline, context in product(SIZES, (*SIZES, 16), SIZES[:3]):
            if (
                self.cluster.count % (tensor * pipeline * context) == 0
                and tensor <= self.cluster.per_node
                and self.shape.groups % tensor == 0
                and self.shape.layers % pipeline == 0
            ):
                yield tensor, pipeline, context

    def best_layouts(self, config: RunConfig, count: int = 5) -> list[Prediction]:
        """Layouts that fit, best first; of each mesh the best micro-batch and recomputation."""
        found = [self._best_of(config, mesh) for mesh in self.meshes()]
        fitting = [one for one in found if one is not None]
        return sorted(fitting, key=lambda one: one.rank, reverse=True)[:count]

    def _best_of(self, config: RunConfig, mesh: tuple[int, int, int]) -> Prediction | None:
        best: Prediction | None = None
        for micro in SIZES[:3]:
            changes = {**mesh_changes(mesh), MICRO: micro, RECOMPUTED: None}
            if not self._could_fit(config, mesh, micro):
                break  # nor would a larger one
            placed = self.placed(config, changes)
            if self.problems(placed):
                continue
            work = self.predict(placed, IN_SEARCH).work
            for recompute in RECOMPUTE:
                tried = self._with_work(self.placed(placed, {RECOMPUTED: recompute}), work)
                if not tried.fits or self.problems(tried.config):
                    continue
                if best is None or tried.tokens_per_second > best.tokens_per_second:
                    best = tried
        return best

    def _could_fit(self, config: RunConfig, mesh: tuple[int, int, int], micro: int) -> bool:
        """Whether it would with full recomputation, by memory alone."""
        tensor, pipeline, context = mesh
        copies = self.cluster.count // (tensor * pipeline * context)
        setup = replace(
            setup_of(config, copies),
            tensor=tensor, pipeline=pipeline, chunks=1, context=context,
            sequence_parallel=tensor > 1, recompute="full",
            positions=positions_of(config, micro),
            micro_batches=max(1, config.model.global_batch_size // (copies * micro)),
        )  # fmt: skip
        needed = fullest(memory_of_stages(self.shape, setup)).total
        return needed <= self.cluster.device.memory * 1e9

    def fits_somehow(self, config: RunConfig) -> bool:
        """Whether any layout fits, by memory alone."""
        return any(
            self._could_fit(config, mesh, 1)
            for mesh in self.meshes()
            if config.model.global_batch_size
            % (self.cluster.count // (mesh[0] * mesh[1] * mesh[2]))
            == 0
        )


def mesh_changes(mesh: Sequence[int]) -> dict[str, Any]:
    """The keys of TP, PP and CP, and those that follow from them."""
    return {
        **dict(zip(MESH, mesh, strict=True)),
        "model.sequence_parallel": mesh[0] > 1,
        "model.virtual_pipeline_model_parallel_size": None,
    }
