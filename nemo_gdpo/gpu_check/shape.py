"""Speed and memory at the shape of Llama 3 8B, with as many layers as fit on one GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nemo_gdpo.config.packing import packed_row
from nemo_gdpo.config.recipes import run_config
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.gpu_check.findings import Measurement, NotHereError
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.objectives import build_objective
from nemo_gdpo.plan.memory import Memory, Setup, memory_of_stages
from nemo_gdpo.plan.shape import KNOWN, Shape
from nemo_gdpo.platform import current_platform, detect_capabilities
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.forecast import as_megatron
from nemo_gdpo.training.mesh import Mesh, build_mesh, join_world, layout_of, leave_mesh
from nemo_gdpo.training.optimizer import build_optimizer

LLAMA3_8B = replace(
    as_megatron(KNOWN["llama3_8b"]),
    max_position_embeddings=8192,
    rotary_base=500000.0,
    layernorm_epsilon=1e-5,
)
"""meta-llama/Meta-Llama-3-8B's config.json."""
UPDATES, WARM_UPS = 5, 2
END = 2
"""Token that ends a response."""


@dataclass(frozen=True)
class Workload:
    """Pairs of equal length on one rank. Lengths in tokens."""

    model: MegatronModelConfig = LLAMA3_8B
    prompt: int = 1024
    response: int = 1024
    pairs: int = 4
    """In an update, one in each micro-batch."""

    @property
    def tokens(self) -> int:
        """In an update."""
        return 2 * self.pairs * (self.prompt + self.response)


def shape_of(model: MegatronModelConfig) -> Shape:
    """Sizes of the model as predictions take them."""
    return Shape(
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        groups=model.num_query_groups,
        head=model.kv_channels,
        ffn=model.ffn_hidden_size,
        vocabulary=model.vocab_size,
    )


def predicted(work: Workload, precision: str) -> Memory:
    """Memory of the one rank, as `nemo-gdpo plan` predicts it."""
    positions = 2 * (work.prompt + work.response)
    setup = Setup(precision=precision, positions=positions, micro_batches=work.pairs)
    (found,) = memory_of_stages(shape_of(work.model), setup)
    return found


def layers_that_fit(work: Workload, free_bytes: int) -> int:
    """Layers for which weights, optimizer state and one micro-batch's activations fit, by 90 %.

    Raises:
        NotHereError: not even two do.
    """
    fit = 0
    for layers in range(2, work.model.num_layers + 1):
        fewer = replace(work, model=replace(work.model, num_layers=layers))
        # With FP8's copies of the weights, which all precisions have to have room for.
        if predicted(fewer, "fp8_tensorwise").total <= 0.9 * free_bytes:
            fit = layers
    if not fit:
        raise NotHereError(f"{free_bytes / 2**30:.0f} GiB of memory hold less than two such layers")
    return fit


def model_flops(work: Workload) -> float:
    """Floating-point operations of an update's forward and backward, recomputation not counted.

    Two for each weight and token forward and twice that backward; attention's two products over
    half of the square; the head on response tokens alone.
    """
    model, length = work.model, work.prompt + work.response
    layers = model.num_layers * shape_of(model).matrices
    attention = model.num_layers * 2 * length * model.query_size
    responses = 2 * work.pairs * work.response
    head = responses * model.vocab_size * model.hidden_size
    return 6.0 * (work.tokens * (layers + attention / 2) + head)


@dataclass(frozen=True)
class Speed:
    """Of one setting."""

    step_seconds: float
    """Median."""
    slowest_seconds: float
    peak_bytes: int


def measure(shape: MegatronModelConfig, pairs: Sequence[TokenizedPair], *settings: str) -> Speed:
    """Time updates by the project's own model, schedule and optimizer.

    Args:
        shape: of the model; its weights are random.
        pairs: the global batch, the same in every update.
        settings: overrides of the configuration.
    """
    gc.collect()  # a model holds itself; the one measured before would fill the memory
    longest_prompt = max(len(pair.prompt_ids) for pair in pairs)
    longest = max(
        len(pair.prompt_ids) + len(side.ids)
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    )
    config = run_config(
        "objective=gdpo",
        "model.micro_batch_size=1",
        "data.packing=false",
        f"model.global_batch_size={len(pairs)}",
        f"data.max_length={longest}",
        f"data.max_prompt_length={longest_prompt}",
        *settings,
    )
    platform = current_platform()
    join_world(platform)
    mesh = build_mesh(layout_of(config), platform, seed=1)
    model = PreferenceModel(
        config,
        objective=build_objective(config.objective),
        model_config=shape,
        layout=mesh.layout,
        end_token_id=END,
    )
    model.prepare_for_training()
    optimizer = build_optimizer(config, model.policy_chunks)
    batches = _batches(pairs, model, mesh)
    _forget_peak(mesh.device)
    times = []
    for _ in range(WARM_UPS + UPDATES):
        _synchronize(mesh.device)
        begun = time.perf_counter()
        model.prepare_for_training_step()
        optimizer.zero_grad()
        model.get_loss_and_metrics(batches, forward_only=False)
        optimizer.step()
        _synchronize(mesh.device)
        times.append(time.perf_counter() - begun)
    peak = platform.peak_memory_bytes()
    leave_mesh()
    kept = times[WARM_UPS:]
    return Speed(statistics.median(kept), max(kept), peak)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def random_pair(
    draw: torch.Generator, vocabulary: int, prompt: int, chosen: int, rejected: int
) -> TokenizedPair:
    """A pair of random tokens with these lengths; both responses end with `END`."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (count,), generator=draw).tolist())

    def response(length: int) -> TokenizedResponse:
        return TokenizedResponse((*ids(length - 1), END), complete=True)

    return TokenizedPair("random", ids(prompt), response(chosen), response(rejected))


def equal_pairs(work: Workload) -> list[TokenizedPair]:
    """The workload's pairs."""
    draw = torch.Generator().manual_seed(3)
    return [
        random_pair(draw, work.model.vocab_size, work.prompt, work.response, work.response)
        for _ in range(work.pairs)
    ]


def _batches(
    pairs: Sequence[TokenizedPair], model: PreferenceModel, mesh: Mesh
) -> list[PreferenceMicroBatch]:
    """Micro-batches with the reference's log-probs in them."""
    builder = BatchBuilder(
        pairs=pairs, pad_token_id=0, layout=mesh.layout,
        micro_batch_size=model.config.model.micro_batch_size,
        pack_tokens=packed_row(model.config), prefix_sharing=model.config.data.prefix_sharing,
        precision=model.config.precision,
        data_rank=mesh.data_rank, data_size=mesh.data_size, device=mesh.device,
    )  # fmt: skip
    batches = builder.build(list(range(len(pairs))), None)
    references = model.get_reference_logprobs(batches)
    return [
        replace(batch, reference_TC=reference)
        for batch, reference in zip(batches, references, strict=True)
    ]


def require_engine() -> None:
    """Leave the stage where there is no GPU with Transformer Engine.

    Raises:
        NotHereError: with the reason.
    """
    capabilities = detect_capabilities()
    if capabilities.device_type != "cuda" or not capabilities.transformer_engine.ok:
        raise NotHereError("it takes a GPU with Transformer Engine")


def speed(folder: Path) -> Iterator[Measurement]:
    """Step time, tokens and TFLOP a second, memory; FP8 over bf16 in the same run."""
    del folder
    require_engine()
    free = int(torch.cuda.mem_get_info()[0])
    work = Workload()
    layers = layers_that_fit(work, free)
    work = replace(work, model=replace(work.model, num_layers=layers))
    yield Measurement("layers", layers, f"of {LLAMA3_8B.num_layers}")
    yield Measurement("tokens in an update", work.tokens)
    yield from compare_precisions(
        work,
        [
            "bf16",
            *sorted(
                detect_capabilities().precisions & {"fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8"}
            ),
        ],
    )


def compare_precisions(work: Workload, precisions: list[str]) -> Iterator[Measurement]:
    """Measurements of each precision, and each one's speed over the first's."""
    first: Speed | None = None
    pairs = equal_pairs(work)
    for precision in precisions:
        found = measure(work.model, pairs, f"precision={precision}")
        first = first or found
        yield Measurement(f"{precision} update", found.step_seconds, "s")
        yield Measurement(f"{precision} slowest update", found.slowest_seconds, "s")
        yield Measurement(f"{precision} speed", work.tokens / found.step_seconds, "tokens/s")
        rate = model_flops(work) / found.step_seconds / 1e12
        yield Measurement(f"{precision} arithmetic", rate, "TFLOP/s")
        yield Measurement(f"{precision} peak memory", found.peak_bytes / 2**30, "GiB")
        told = predicted(work, precision).total / 2**30
        yield Measurement(f"{precision} memory as `plan` predicts it", told, "GiB")
        if found is not first:
            ratio = first.step_seconds / found.step_seconds
            yield Measurement(f"{precision} over {precisions[0]}", ratio, "times")
