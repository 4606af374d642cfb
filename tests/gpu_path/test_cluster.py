"""The experiments for 16 GPUs: all that some of their ranks do in an update, but for the numbers.

Shapes, types, devices, memory, calls of Transformer Engine, and what the ranks ask of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.gpu_path.fakes.agreement import disagreements, stuck
from tests.gpu_path.fakes.jobs import Job
from tests.gpu_path.fakes.worlds import (
    ALL_WORLDS,
    CONTEXT,
    FULL,
    GDPO,
    LOCAL,
    MICRO_BATCHES,
    NONE,
    PACKED_WORLDS,
    PIPELINE,
    WHOLE,
    WORLDS,
)

TP = 4
Found = dict[str, list[dict[str, Any]]]

# Llama 3 8B by hand. A layer: queries of 32 heads, keys and values of 8, of 128 each; their output;
# the three matrices of the MLP; two norms. Vocabulary: 128,256 rows, padded to 128 x TP4.
CUT_OF_A_LAYER = (4096 + 2 * 1024) * 4096 + 4096 * 4096 + 3 * 4096 * 14336
SHARED_OF_A_LAYER = 2 * 4096
EMBEDDING = 128_512 * 4096
FINAL_NORM = 4096
PUBLISHED = 8_030_261_248


@pytest.fixture
def found(cluster: dict[str, Any]) -> Found:
    """Name of a world -> what its ranks found."""
    ranks_of: Found = cluster["worlds"]
    return ranks_of


def stages(job: Job) -> int:
    return 2 if set(PIPELINE) <= set(job.overrides) else 1


def is_last(job: Job) -> bool:
    return stages(job) == 1 or job.rank >= 8


def halves(job: Job) -> int:
    return 2 if set(CONTEXT) <= set(job.overrides) else 1


def copies(job: Job) -> int:
    """Ranks that have the same part of the model."""
    return 16 // TP // stages(job)


def layers_by_type(job: Job) -> tuple[int, int]:
    """(not in FP8, in FP8) on one stage; the model's first and last layer never are."""
    layers = job.layers // stages(job)
    plain = 2 // stages(job) if job.precision.startswith("fp8") else layers
    return plain, layers - plain


def strips(job: Job) -> int:
    """In how many parts of the vocabulary the head computes; 0 where it does so in float32.

    Logits of 1024 tokens and all 32,128 rows of a rank may exist together, so that 1027 tokens or
    more take two parts. A half of the row has half as many.
    """
    if job.precision == "fp32" or not is_last(job):
        return 0
    return 2 // halves(job)


def is_local(job: Job) -> bool:
    return job.precision == "fp32" or set(LOCAL) <= set(job.overrides)


def parameters(job: Job) -> tuple[int, int]:
    """(all of a rank, those that all ranks of its tensor-parallel group have the same)."""
    layers, embeddings = job.layers // stages(job), 2 // stages(job)
    shared = layers * SHARED_OF_A_LAYER + FINAL_NORM * is_last(job)
    return (layers * CUT_OF_A_LAYER + embeddings * EMBEDDING) // TP + shared, shared


def ranks(of: Callable[[Job], object] = lambda job: job.micro_batches) -> pytest.MarkDecorator:
    """Every rank of every world that something is true of, as a parameter of a test."""
    chosen = [
        pytest.param(name, at, id=f"{name}-{job.rank}")
        for name, world in WORLDS.items()
        for at, job in enumerate(world)
        if of(job)
    ]
    return pytest.mark.parametrize(("name", "at"), chosen)


@ranks(lambda job: True)
def test_a_rank_holds_its_part_of_the_model(name: str, at: int, found: Found) -> None:
    own, shared = parameters(WORLDS[name][at])
    kind = "float32" if WORLDS[name][at].precision == "fp32" else "bfloat16"
    expected = {"own": own, "shared": shared, "types": [f"torch.{kind} gpu:0"]}
    assert found[name][at]["parameters"] == expected


def test_the_parts_are_the_published_model(found: Found) -> None:
    """8.03 B parameters over the mesh: what is cut, four times, and what is shared, once."""
    part = found["whole"][0]["parameters"]
    assert part["own"] == 2_008_289_280
    over_the_mesh = (part["own"] - part["shared"]) * TP + part["shared"]
    padding = 2 * (128_512 - 128_256) * 4096
    assert over_the_mesh - padding == PUBLISHED


@ranks(lambda job: True)
def test_memory_that_stays(name: str, at: int, found: Found) -> None:
    """Bytes a parameter: 2 for itself, 4 for its gradient, and of the 12 of fp32 weight and Adam's
    two moments the part that this copy of the model keeps; nothing is padded at these sizes. FP8
    takes another 2 for the weights' copies for products along either dimension. In fp32 the weight
    itself is the optimizer's.
    """
    job, (own, _) = WORLDS[name][at], parameters(WORLDS[name][at])
    weight, master = (4, 0) if job.precision == "fp32" else (2, 4)
    moments = 8 if job.micro_batches else 0  # made in the first update
    keepers = 1 if set(WHOLE) <= set(job.overrides) else copies(job)
    in_fp8 = layers_by_type(job)[1] * CUT_OF_A_LAYER // TP
    assert found[name][at]["memory"] == {
        "parameters": weight * own,
        "gradients": 4 * own,
        "optimizer": (master + moments) * own // keepers,
        "quantized weights": 2 * in_fp8 if job.micro_batches else 0,
    }


@ranks()
def test_rows_have_one_length_that_every_kernel_takes(name: str, at: int, found: Found) -> None:
    """Pair i has 601 + 7i and 701 - 3i tokens in its longer row, and the last is the longest: 1330
    where four readers take eight pairs, 1314 where two take four.

    Sequence parallelism cuts a row into 4, and FP8 wants multiples of 16 of that, or of 128.
    """
    job = WORLDS[name][at]
    length = {
        ("bf16", 1): 1336,  # 167 x 8
        ("fp32", 1): 1336,
        ("bf16", 2): 1320,  # 165 x 8
        ("fp8_tensorwise", 1): 1344,  # 21 x 4 x 16
        ("fp8_tensorwise", 2): 1344,
        ("fp8_blockwise", 1): 1536,  # 3 x 4 x 128
    }[job.precision, stages(job)]
    if halves(job) == 2:
        length = 1328  # 83 x 16: 4 pieces, of which a rank has two, each cut into 4
    reference = found[name][at]["reference"]
    assert reference["rows"] == [[2, length]] * MICRO_BATCHES
    # Micro-batches go to the readers of data in turn, and pair i has 1034 - i labels.
    reader = job.rank % (16 // stages(job)) // TP // halves(job)
    readers = copies(job) // halves(job)
    labels = [1034 - (step * readers + reader) for step in range(MICRO_BATCHES)]
    assert reference["labels"] == labels
    columns = 2 if job.experiment == GDPO else 1  # label and EOS
    assert reference["outputs"] == [[count, columns] for count in labels if is_last(job)]


@ranks(is_local)
def test_local_layers_call_nothing_of_transformer_engine(name: str, at: int, found: Found) -> None:
    result, parts = found[name][at], strips(WORLDS[name][at])
    assert _of_layers(result["reference"]["calls"]) == _times({"head score": parts})
    kernels = ("head score", "head gradient", "head add_rows")
    assert _of_layers(result["calls"]) == _times(dict.fromkeys(kernels, parts))


@ranks(lambda job: job.micro_batches and not is_local(job))
def test_calls_of_transformer_engine(name: str, at: int, found: Found) -> None:
    """By kind and layer, for each micro-batch.

    Four linear layers are a product each forward and two backward; two norms a layer, one at the
    end of the model; queries and keys are rotated. `selective` computes the MLP again (two
    products, one norm), `full` all that goes forward. A row in halves takes a kernel of attention
    for the keys of each.
    """
    job = WORLDS[name][at]
    result, (plain, fp8) = found[name][at], layers_by_type(job)
    kind = {"bf16": "none", "fp8_tensorwise": "gemm tensor", "fp8_blockwise": "gemm block"}
    kind_of_fp8, layers, final = kind[job.precision], plain + fp8, int(is_last(job))
    forward = {
        "gemm plain": 4 * plain,
        kind_of_fp8: 4 * fp8,
        "rmsnorm_fwd": 2 * layers + final,
        "fused_rope_forward": 2 * layers,
        "fused_attn_fwd": layers * halves(job),
        "head score": strips(job),
    }
    assert _of_layers(result["reference"]["calls"]) == _times(forward)
    again = {"products": 2, "norms": 1, "attention": 0}
    if set(FULL) <= set(job.overrides):
        again = {"products": 4, "norms": 2, "attention": 1}
    if set(NONE) <= set(job.overrides):
        again = {"products": 0, "norms": 0, "attention": 0}
    both = {
        "gemm plain": (12 + again["products"]) * plain,
        kind_of_fp8: (12 + again["products"]) * fp8,
        "rmsnorm_fwd": (2 + again["norms"]) * layers + final,
        "rmsnorm_bwd": 2 * layers + final,
        "fused_rope_forward": 2 * (1 + again["attention"]) * layers,
        "fused_rope_backward": 2 * layers,
        "fused_attn_fwd": (1 + again["attention"]) * layers * halves(job),
        "fused_attn_bwd": layers * halves(job),
        "head score": strips(job),
        "head gradient": strips(job),
        "head add_rows": strips(job),
    }
    assert _of_layers(result["calls"]) == _times(both)


def _times(calls: dict[str, int]) -> dict[str, int]:
    return {kind: MICRO_BATCHES * count for kind, count in calls.items() if count}


def _of_layers(calls: dict[str, int]) -> dict[str, int]:
    """Conversions to FP8 are as many as Transformer Engine sees fit; Adam's lists as well."""
    kinds = ("quantize", "fp8_transpose", "swap_first_dims", "multi_tensor_adam")
    return {kind: count for kind, count in calls.items() if not kind.startswith(kinds)}


@pytest.mark.parametrize("name", [name for name in WORLDS if "wise" in name])
def test_fp8_layers_quantise_and_others_do_not(name: str, found: Found) -> None:
    for job, result in zip(WORLDS[name], found[name], strict=True):
        quantised = sum(n for kind, n in result["calls"].items() if kind.startswith("quantize"))
        # Four weights once, four inputs and four gradients of outputs in every micro-batch.
        least = layers_by_type(job)[1] * (4 + 8 * MICRO_BATCHES)
        assert least <= quantised < 2 * least


@ranks()
def test_every_parameter_gets_a_gradient_from_every_micro_batch(
    name: str, at: int, found: Found
) -> None:
    """Norms get one write more: under sequence parallelism their sum over the ranks comes back.
    The head adds its gradient in parts, as many for each micro-batch.
    """
    contributions, job = dict(found[name][at]["contributions"]), WORLDS[name][at]
    if is_last(job):
        parts, rest = divmod(contributions.pop("chunk0.output_layer.weight"), MICRO_BATCHES)
        assert parts >= max(strips(job), 1)
        assert rest == 0
    norms = {n for n in contributions if "norm" in n}
    layers, embeddings = sum(layers_by_type(job)), job.rank < 8 or stages(job) == 1
    assert len(contributions) == 6 * layers + embeddings + is_last(job)
    assert contributions == {n: MICRO_BATCHES + (n in norms) for n in contributions}


@pytest.mark.parametrize("name", [name for name, world in ALL_WORLDS.items() if len(world) > 1])
def test_ranks_understand_each_other(name: str, found: Found) -> None:
    """Whoever shares a group asks for the same, in an order in which all can go on."""
    calls = {
        job.rank: result["collectives"]
        for job, result in zip(ALL_WORLDS[name], found[name], strict=True)
    }
    assert disagreements(calls) == []
    assert stuck(calls) == []


@pytest.mark.parametrize("name", PACKED_WORLDS)
def test_packed_rows_are_as_long_as_their_pairs(name: str, found: Found) -> None:
    """One row a micro-batch; those of a pipeline's replica have one length."""
    multiple = 64 if "tensorwise" in name else 8  # FP8: 16 tokens on each of TP4's ranks
    for result in found[name]:
        rows = result["reference"]["rows"]
        assert {count for count, _ in rows} == {1}
        assert all(length % multiple == 0 for _, length in rows)
        assert len({length for _, length in rows}) == (1 if "pipeline" in name else len(rows))
    # The ranks of one replica have the same rows.
    assert found[name][0]["reference"]["rows"] == found[name][1]["reference"]["rows"]


def test_shared_prompts_are_computed_once(found: Found) -> None:
    """Fewer positions for the same pairs."""
    positions = [
        sum(length for _, length in found[name][0]["reference"]["rows"])
        for name in ("packed", "packed, shared")
    ]
    assert positions[1] < positions[0]


def test_gradients_are_reduced_while_backward_goes_on(found: Found) -> None:
    """From the second update on; so it is that order, too, on which the ranks agree."""
    result = found["gdpo"][0]
    kinds = [(call.kind, call.ranks) for call in result["collectives"]]
    reduced = [i for i, kind in enumerate(kinds) if kind == ("reduce_scatter", (0, 4, 8, 12))]
    layers = [i for i, kind in enumerate(kinds) if kind == ("reduce_scatter", (0, 1, 2, 3))]
    half = len(reduced) // 2
    assert half > 1
    assert not any(reduced[0] < at < reduced[half - 1] for at in layers)
    assert any(reduced[half] < at < reduced[-1] for at in layers)


def test_stages_send_hidden_states_and_get_gradients(found: Found) -> None:
    """[1320 / 4, 2, 4096] in bf16: for each micro-batch one forward for the reference, one for the
    policy, and one back."""
    messages = Counter(
        (call.kind, call.sizes, call.dtype)
        for call in found["pipeline"][0]["collectives"]
        if call.kind in ("send", "recv")
    )
    size = (1320 // TP * 2 * 4096,)
    assert messages == {
        ("send", size, "bfloat16"): 2 * MICRO_BATCHES,
        ("recv", size, "bfloat16"): MICRO_BATCHES,
    }
