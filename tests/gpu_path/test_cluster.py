"""The experiments for 16 GPUs: all that some of their ranks do in an update, but for the numbers.

Shapes, types, devices, memory, calls of Transformer Engine, and what the ranks ask of each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_path.fakes.agreement import disagreements, stuck
from tests.gpu_path.fakes.calls import Call
from tests.gpu_path.fakes.jobs import Job
from tests.support.ranks import ROOT, clean_environment

GDPO = "gdpo_llama3_8b"
PIPELINE = ("parallel=tp4_pp2",)
FULL = ("model.activations_checkpoint_granularity=full",)
NONE = ("model.activations_checkpoint_granularity=null",)
MICRO_BATCHES = 2
TP = 4
WORLDS: dict[str, list[Job]] = {
    # Rank 1 shares layers with rank 0, rank 4 its part of the gradients; 15 is the last.
    "gdpo": [Job(GDPO, rank, layers=2, steps=2) for rank in (0, 1, 4, 15)],
    "odpo": [Job("odpo_llama3_8b", rank, layers=2, apex=True) for rank in (7,)],
    "adpo": [Job("adpo_llama3_8b", rank, layers=2) for rank in (15,)],
    # Ranks 8 to 15 hold the second half of the layers.
    "pipeline": [Job(GDPO, rank, layers=4, overrides=PIPELINE + FULL) for rank in (0, 4, 8, 9, 15)],
    "tensorwise": [Job(GDPO, rank, "fp8_tensorwise", 4) for rank in (0, 1, 4, 15)],
    "blockwise": [Job(GDPO, rank, "fp8_blockwise", 4) for rank in (0, 3)],
    "tensorwise pipeline": [
        Job(GDPO, rank, "fp8_tensorwise", 4, overrides=PIPELINE + NONE) for rank in (0, 8)
    ],
    "whole": [Job(GDPO, 0, layers=32, micro_batches=0)],
}
Found = dict[str, list[dict[str, Any]]]

# Llama 3 8B by hand. A layer: queries of 32 heads, keys and values of 8, of 128 each; their output;
# the three matrices of the MLP; two norms. Vocabulary: 128,256 rows, padded to 128 x TP4.
CUT_OF_A_LAYER = (4096 + 2 * 1024) * 4096 + 4096 * 4096 + 3 * 4096 * 14336
SHARED_OF_A_LAYER = 2 * 4096
EMBEDDING = 128_512 * 4096
FINAL_NORM = 4096
PUBLISHED = 8_030_261_248


@pytest.fixture(scope="module")
def found(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Name of a world -> what its ranks found; one process for all, which believes in a GPU."""
    folder = tmp_path_factory.mktemp("cluster")
    jobs = [(name, job) for name, world in WORLDS.items() for job in world]
    asked, answer = folder / "jobs.json", folder / "found.json"
    asked.write_text(json.dumps([asdict(job) for _, job in jobs]))
    command = [sys.executable, "-m", "tests.gpu_path.fake_cluster", "--jobs", str(asked)]
    done = subprocess.run(
        [*command, "--json", str(answer), "--tree", str(tree)],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    results: Found = {name: [] for name in WORLDS}
    for (name, _), result in zip(jobs, json.loads(answer.read_text()), strict=True):
        result["collectives"] = [
            Call(kind, tuple(ranks), tuple(sizes), dtype, detail)
            for kind, ranks, sizes, dtype, detail in result["collectives"]
        ]
        results[name].append(result)
    return results


def stages(job: Job) -> int:
    return 2 if set(PIPELINE) <= set(job.overrides) else 1


def is_last(job: Job) -> bool:
    return stages(job) == 1 or job.rank >= 8


def copies(job: Job) -> int:
    return 16 // TP // stages(job)


def layers_by_type(job: Job) -> tuple[int, int]:
    """(in bf16, in FP8) on one stage; the model's first and last layer are never in FP8."""
    layers = job.layers // stages(job)
    plain = layers if job.precision == "bf16" else 2 // stages(job)
    return plain, layers - plain


def parameters(job: Job) -> tuple[int, int]:
    """(all of a rank, those that all ranks of its tensor-parallel group have the same)."""
    layers, embeddings = job.layers // stages(job), 2 // stages(job)
    shared = layers * SHARED_OF_A_LAYER + FINAL_NORM * is_last(job)
    return (layers * CUT_OF_A_LAYER + embeddings * EMBEDDING) // TP + shared, shared


def ranks(*, running: bool = True) -> pytest.MarkDecorator:
    """Every rank of every world, as a parameter of a test."""
    chosen = [
        pytest.param(name, at, id=f"{name}-{job.rank}")
        for name, world in WORLDS.items()
        for at, job in enumerate(world)
        if job.micro_batches or not running
    ]
    return pytest.mark.parametrize(("name", "at"), chosen)


@ranks(running=False)
def test_a_rank_holds_its_part_of_the_model(name: str, at: int, found: Found) -> None:
    own, shared = parameters(WORLDS[name][at])
    expected = {"own": own, "shared": shared, "types": ["torch.bfloat16 gpu:0"]}
    assert found[name][at]["parameters"] == expected


def test_the_parts_are_the_published_model(found: Found) -> None:
    """8.03 B parameters over the mesh: what is cut, four times, and what is shared, once."""
    part = found["whole"][0]["parameters"]
    assert part["own"] == 2_008_289_280
    over_the_mesh = (part["own"] - part["shared"]) * TP + part["shared"]
    padding = 2 * (128_512 - 128_256) * 4096
    assert over_the_mesh - padding == PUBLISHED


@ranks(running=False)
def test_memory_that_stays(name: str, at: int, found: Found) -> None:
    """Bytes a parameter: 2 for itself, 4 for its gradient, and of the 12 of fp32 weight and Adam's
    two moments the part that this copy of the model keeps; nothing is padded at these sizes. FP8
    takes another 2 for the weights' copies for products along either dimension.
    """
    job, (own, _) = WORLDS[name][at], parameters(WORLDS[name][at])
    in_fp8 = layers_by_type(job)[1] * CUT_OF_A_LAYER // TP
    states = 12 if job.micro_batches else 4  # Adam makes its moments in the first update
    assert found[name][at]["memory"] == {
        "parameters": 2 * own,
        "gradients": 4 * own,
        "optimizer": states * own // copies(job),
        "quantized weights": 2 * in_fp8,
    }


@ranks()
def test_rows_have_one_length_that_every_kernel_takes(name: str, at: int, found: Found) -> None:
    """Pair i has 601 + 7i and 701 - 3i tokens in its longer row: 1330 at i = 7, 1314 at i = 3.

    Sequence parallelism cuts a row into 4, and FP8 wants multiples of 16 of that, or of 128.
    """
    job = WORLDS[name][at]
    length = {
        ("bf16", 1): 1336,  # 167 x 8
        ("bf16", 2): 1320,  # 165 x 8
        ("fp8_tensorwise", 1): 1344,  # 21 x 4 x 16
        ("fp8_tensorwise", 2): 1344,
        ("fp8_blockwise", 1): 1536,  # 3 x 4 x 128
    }[job.precision, stages(job)]
    reference = found[name][at]["reference"]
    assert reference["rows"] == [[2, length]] * MICRO_BATCHES
    # Micro-batches go to the copies in turn, and pair i has 1034 - i labels.
    copy = job.rank % (16 // stages(job)) // TP
    labels = [1034 - (step * copies(job) + copy) for step in range(MICRO_BATCHES)]
    assert reference["labels"] == labels
    columns = 3 if job.experiment == GDPO else 1  # label, EOS and tempered EOS
    assert reference["outputs"] == [[count, columns] for count in labels if is_last(job)]


@ranks()
def test_calls_of_transformer_engine(name: str, at: int, found: Found) -> None:
    """By kind and layer, for each micro-batch.

    Four linear layers are a product each forward and two backward; two norms a layer, one at the
    end of the model; queries and keys are rotated. `selective` computes the MLP again (two
    products, one norm), `full` all that goes forward.
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
        "fused_attn_fwd": layers,
    }
    assert _without_quantizers(result["reference"]["calls"]) == _times(forward)
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
        "fused_attn_fwd": (1 + again["attention"]) * layers,
        "fused_attn_bwd": layers,
    }
    assert _without_quantizers(result["calls"]) == _times(both)


def _times(calls: dict[str, int]) -> dict[str, int]:
    return {kind: MICRO_BATCHES * count for kind, count in calls.items() if count}


def _without_quantizers(calls: dict[str, int]) -> dict[str, int]:
    """Conversions to FP8 are as many as Transformer Engine sees fit; Adam's lists as well."""
    kinds = ("quantize", "fp8_transpose", "swap_first_dims", "multi_tensor_adam")
    return {kind: count for kind, count in calls.items() if not kind.startswith(kinds)}


@pytest.mark.parametrize("name", ["tensorwise", "blockwise", "tensorwise pipeline"])
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
    """Norms get one write more: under sequence parallelism their sum over the ranks comes back."""
    contributions = found[name][at]["contributions"]
    norms = {n for n in contributions if "norm" in n}
    layers, embeddings = sum(layers_by_type(WORLDS[name][at])), 2 // stages(WORLDS[name][at])
    assert len(contributions) == 6 * layers + embeddings + is_last(WORLDS[name][at])
    assert contributions == {n: MICRO_BATCHES + (n in norms) for n in contributions}


@pytest.mark.parametrize("name", [name for name, world in WORLDS.items() if len(world) > 1])
def test_ranks_understand_each_other(name: str, found: Found) -> None:
    """Whoever shares a group asks for the same, in an order in which all can go on."""
    calls = {
        job.rank: result["collectives"]
        for job, result in zip(WORLDS[name], found[name], strict=True)
    }
    assert disagreements(calls) == []
    assert stuck(calls) == []


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
