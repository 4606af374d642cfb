"""One rank of an experiment on the cluster it is for: built, one update made, and looked at.

Everything is the project's own, from the composed configuration to the optimizer's step: the
platform's choices, Transformer Engine's layers, megatron's schedule, DDP and distributed optimizer.
Left out is what lives on numbers: weights, the reference's log-probs, checks of values, files.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems
from nemo_gdpo.config.world import configured_world_size, data_parallel_size, ranks_per_node
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.data.dataset import PreferenceDataset, collect_arrays
from nemo_gdpo.data.tokenize import TokenizeStats
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.objectives import build_objective
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.mesh import build_mesh, join_world, layout_of, leave_world
from nemo_gdpo.training.reference_store import ReferenceStore
from nemo_gdpo.training.run import Run
from nemo_gdpo.training.trainer import PreferenceTrainer
from nemo_gdpo.verbs.start import detect_hardware
from tests.gpu_path import gpu
from tests.gpu_path.compiled.calls import CALLS
from tests.gpu_path.fakes import head
from tests.gpu_path.fakes.fields import watched_fields
from tests.gpu_path.fakes.group import world
from tests.gpu_path.fakes.jobs import Job
from tests.gpu_path.fakes.numbers import Answer, Numbers, Write, place

END_TOKEN = 128009
"""<|eot_id|> of Llama 3."""
LLAMA3_8B = MegatronModelConfig(
    family="llama",
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_query_groups=8,
    kv_channels=128,
    vocab_size=128256,
    max_position_embeddings=8192,
    rotary_base=500000.0,
    layernorm_epsilon=1e-5,
)
"""config.json of Meta-Llama-3-8B-Instruct."""
ANSWERS = (
    # Gradients have a norm, and clipping asks for it; 1 is the size at which nothing is clipped.
    Answer("local_multi_tensor_l2_norm", 1.0),
    Answer("get_grad_norm_fp32", 1.0),
)


def compose_job(job: Job) -> RunConfig:
    """The configuration that its cluster would run, but for the number of pairs in an update."""
    given = [
        f"experiment={job.experiment}",
        f"precision={job.precision}",
        "model.restore_from_path=/llama3",
        "data.train_path=/pairs",
        "data.validation_path=/pairs",
        "data.packing=false",  # micro-batches of one size; overrides say otherwise
        *job.overrides,
    ]
    plain = compose(given, TRAIN).plain
    config = TRAIN.parse(plain)
    copies = data_parallel_size(config, configured_world_size(config))
    assert copies is not None
    pairs = max(job.micro_batches, 1) * copies * config.model.micro_batch_size
    plain["model"]["global_batch_size"] = pairs
    config = TRAIN.parse(plain)
    machine = detect_hardware(plain, joined=False)
    raise_problems(problems(config, machine, hugging_face(job), files=False))
    return config


def hugging_face(job: Job) -> dict[str, Any]:
    """What the checks read of the model's config.json."""
    model = LLAMA3_8B
    return {
        "num_hidden_layers": job.layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        "max_position_embeddings": model.max_position_embeddings,
    }


def pairs_of(count: int) -> PreferenceDataset:
    """Pairs of many lengths, most of them odd; every micro-batch has another number of labels."""

    def response(tokens: int) -> TokenizedResponse:
        return TokenizedResponse((*range(9, 8 + tokens), END_TOKEN), True)

    made = (
        TokenizedPair(
            id=str(i),
            prompt_ids=tuple(range(5, 606 + 7 * i)),
            chosen=response(701 - 3 * i),
            rejected=response(333 + 2 * i),
            chosen_score=2.0,
            rejected_score=1.0,
        )
        for i in range(count)
    )
    return PreferenceDataset(
        collect_arrays(made), end_token_id=END_TOKEN, pad_token_id=0, stats=TokenizeStats()
    )


class Watched(PreferenceTrainer):
    """The project's trainer, without what it does with a step's numbers."""

    numbers: Numbers
    writes: list[Write]
    """Of forward and backward of the last update."""

    def train_step(self) -> dict[str, Any]:
        indices = self.sampler.next_global_batch(self.batch_size)
        self.model.prepare_for_training_step()
        self.optimizer.zero_grad()
        self.numbers.writes.clear()
        self._per_pair(self.train, indices, forward_only=False)
        self.writes = list(self.numbers.writes)
        self._update(0, [])
        return self._memory()

    def contributions(self) -> dict[str, int]:
        """Parameter -> how often something was written into its own part of the main gradients."""
        found = {}
        for name, parameter in self.model.named_policy_parameters():
            own = place(_gradient(parameter))
            found[name] = sum(
                write.storage == own.storage and own.start <= write.start and write.stop <= own.stop
                for write in self.writes
            )
        return found


class _Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Numbers never go to the fake device, where nothing could hold them."""

    avoid_device_init = True


class Rehearsal:
    """A process with a fake GPU (`tests.gpu_path.fakes.device.start`), for rank after rank."""

    def __init__(self) -> None:
        self._fakes = _Fakes(allow_non_fake_inputs=True)
        head.install()

    def run(self, job: Job) -> dict[str, Any]:
        """What was found, as JSON."""
        gpu.become(gpu.HOPPER, apex=job.apex)
        config = compose_job(job)
        begun, cpu = time.perf_counter(), time.process_time()
        size, numbers = configured_world_size(config), Numbers(ANSWERS)
        place = world(job.rank, size, ranks_per_node(config))
        with place as record, watched_fields() as fields, self._fakes, numbers:
            try:
                found = _rehearse(job, config, numbers)
            finally:
                leave_world()
        return {
            "job": asdict(job),
            **found,
            "collectives": record.calls,
            "fields": fields.to_json(),
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": time.process_time() - cpu,
        }


def _rehearse(job: Job, config: RunConfig, numbers: Numbers) -> dict[str, Any]:
    run = _build(job, config)
    found: dict[str, Any] = {"parameters": _parameters(run.model)}
    if job.micro_batches:
        found["reference"] = _reference(run)
    trainer = run.build_trainer({"train": _store(run)}, StopRequest(), Watched)
    assert isinstance(trainer, Watched)
    if job.micro_batches:
        trainer.numbers = numbers
        for _ in range(job.steps):
            CALLS.clear()
            trainer.train_step()
        found |= {"calls": dict(CALLS), "contributions": trainer.contributions()}
    return found | {"memory": _memory(trainer)}


def _build(job: Job, config: RunConfig) -> Run:
    """As `Run.build` does, without files."""
    platform = current_platform()
    join_world(platform)
    mesh = build_mesh(layout_of(config), platform, seed=config.seed)
    data = pairs_of(config.model.global_batch_size)
    model = PreferenceModel(
        config,
        objective=build_objective(config.objective),
        model_config=replace(LLAMA3_8B, num_layers=job.layers),
        layout=mesh.layout,
        end_token_id=END_TOKEN,
    )
    nowhere: Any = None
    return Run(config, Path("/nowhere"), mesh, nowhere, {"train": data}, model)


def _reference(run: Run) -> dict[str, Any]:
    """The reference's pass over a global batch: shapes that went in and came out, and calls."""
    data = run.data["train"]
    batches = run.batches(data).build(range(len(data)), None)
    run.model.prepare_for_inference()
    CALLS.clear()
    outputs = run.model.get_reference_logprobs(batches)
    return {
        "rows": [list(batch.inputs[0].shape) for batch in batches],
        "labels": [int(batch.rows.response_lengths_N.sum()) for batch in batches],
        "outputs": [list(output.shape) for output in outputs],
        "calls": dict(CALLS),
    }


def _store(run: Run) -> ReferenceStore:
    """A cache of the size that the reference's pass would fill."""
    data, columns = run.data["train"], len(run.model.reference_columns)
    lengths = [len(half.ids) for pair in data for half in (pair.chosen, pair.rejected)]
    return ReferenceStore(torch.zeros(sum(lengths), columns), np.array(lengths))


def _parameters(model: PreferenceModel) -> dict[str, Any]:
    """Numbers of elements: of this rank, and of what every tensor-parallel rank has the same."""
    parameters = dict(model.named_policy_parameters()).values()
    return {
        "own": sum(p.numel() for p in parameters),
        "shared": sum(p.numel() for p in parameters if not _is_cut(p)),
        "types": sorted({f"{p.dtype} {p.device}" for p in parameters}),
    }


def _gradient(parameter: Any) -> Tensor:
    """Megatron's, float32: where the gradients of all micro-batches are added up."""
    gradient: Tensor = parameter.main_grad
    return gradient


def _is_cut(parameter: Any) -> bool:
    # Megatron marks the parameters of its own layers and Transformer Engine's alike.
    return bool(vars(parameter).get("tensor_model_parallel", False))


def _memory(trainer: Watched) -> dict[str, int]:
    """Bytes that stay, by what they are for."""
    parameters = [p for _, p in trainer.model.named_policy_parameters()]
    gradients = [_gradient(parameter) for parameter in parameters]
    quantized = (
        vars(module).get("_fp8_workspaces", {}).values()
        for chunk in trainer.model.gpt_chunks
        for module in chunk.modules()
    )
    return {
        "parameters": _bytes(parameters),
        "gradients": _bytes(gradients),
        "optimizer": _bytes(_optimizer_tensors(trainer.optimizer), counted=parameters),
        "quantized weights": _bytes(
            part
            for one in itertools.chain.from_iterable(quantized)
            for part in one.get_data_tensors()
            if part is not None
        ),
    }


def _optimizer_tensors(optimizer: Any) -> Iterator[Tensor]:
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for state in part.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor], counted: Iterable[Tensor] = ()) -> int:
    """Of their different storages, but for those that are `counted` already."""
    others = {tensor.untyped_storage()._cdata for tensor in counted}
    storages = [tensor.untyped_storage() for tensor in tensors]
    sizes = {storage._cdata: storage.nbytes() for storage in storages}
    return sum(size for storage, size in sizes.items() if storage not in others)
