"""Seconds of an update, from its FLOPs, a device's peak and the share of it that is reached.

The share is that of published runs, which talk to each other while they compute. What the mesh adds
(bubbles of the pipeline, collectives at the data sheet's bandwidth) is counted on top, without any
overlap: so times tend to be too long, and serve to rank layouts.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_gdpo.plan.hardware import B200, H100, Cluster, Peak
from nemo_gdpo.plan.memory import Setup, recomputes_mlp, swapped_bytes, trained_parameters
from nemo_gdpo.plan.shape import Shape
from nemo_gdpo.precisions import in_fp8

FP8_SHARE = 0.36
"""Of the dense FP8 peak: the mean of NVIDIA's published fine-tuning and pre-training figures of
Llama 3 8B and 70B on H100 and B200 with NeMo (`PUBLISHED`), 0.35 to 0.38."""
BF16_SHARE = 0.41
"""Of the dense BF16 peak: the mean of Llama Team 2024 (The Llama 3 Herd of Models), table 4, 0.43,
0.41 and 0.38 on 8,192 to 16,384 H100."""


@dataclass(frozen=True)
class Published:
    """A published speed, of one device."""

    name: str
    model: str
    length: int
    tokens_per_second: float
    tflops: float
    peak: Peak
    """Of the device."""
    adapters: bool = False
    """LoRA: no gradient of the model's own weights, and attention is not counted."""


PUBLISHED = (
    Published("8B, 8 H100", "llama3_8b", 8192, 14451, 744, H100),
    Published("70B, 64 H100", "llama3_70b", 8192, 1602, 719, H100),
    Published("70B SFT, 32 H100", "llama3_70b", 4096, 1638, 710, H100),
    Published("70B LoRA, 8 H100", "llama3_70b", 4096, 2643, 735, H100, adapters=True),
    Published("8B, 8 B200", "llama3_8b", 8192, 30624, 1576, B200),
)
"""NVIDIA's performance summary of the NeMo Framework: Llama 3 in FP8, for one GPU."""


@dataclass(frozen=True)
class Work:
    """One update in the mean over those that were looked at; FLOPs of a forward pass."""

    pairs: float
    tokens: float
    """Of both sequences of every pair."""
    repeated: float
    """Of them, tokens of prompts that are computed a second time for the second response."""
    labels: float
    flops: float
    """For these tokens alone, a shared prompt once."""
    attention: float
    """Of them, FLOPs that no weight takes part in."""
    slots: float
    """Positions that are computed, padding included."""
    busiest_flops: float
    """Of the copy of the model that has most to do, padding included."""
    busiest_attention: float
    busiest_slots: float
    micro_batches: float
    """Of one copy."""


@dataclass(frozen=True)
class Step:
    """Seconds of an update, part by part."""

    compute: float
    bubble: float
    """Stages of a pipeline that wait for the first and the last micro-batch."""
    communication: float
    """Collectives, and weights that change places with those in host memory."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.bubble + self.communication


def share_of_peak(precision: str) -> float | None:
    """Part of the peak that is assumed; None for fp32, of which nothing is published."""
    if precision == "fp32":
        return None
    return FP8_SHARE if in_fp8(precision) else BF16_SHARE


def useful_passes(setup: Setup, attention: float) -> float:
    """Work of an update without what is computed again, in forward passes: backward is two.

    With adapters a frozen matrix has no gradient, and backward is one for it. The adapters' own
    products are left out: rank / hidden size of the others.

    Args:
        setup: of the run.
        attention: part of the forward pass that no weight takes part in.
    """
    return 3.0 if setup.adapters is None else 2.0 + attention


def passes(shape: Shape, setup: Setup, *, live_reference: bool, attention: float = 0.0) -> float:
    """Work of an update, in forward passes; full recomputation is one more, a live reference too.

    Selective recomputation is the MLP's part of one; of scores that are written out, nothing here.
    See `useful_passes` for `attention`.
    """
    again = 0.0
    if setup.recompute == "full":
        again = 1.0
    elif recomputes_mlp(shape, setup):
        again = 3 * shape.hidden * shape.ffn / shape.matrices
    return useful_passes(setup, attention) + again + (1.0 if live_reference else 0.0)


def step_of(
    shape: Shape,
    setup: Setup,
    work: Work,
    cluster: Cluster,
    *,
    live_reference: bool,
    overlapped: bool,
) -> Step | None:
    """Time of an update; None where the device has no peak, or none is published.

    Args:
        shape: of the model.
        setup: its layout.
        work: of an update, cut for this layout.
        cluster: that computes it.
        live_reference: each update computes the reference, too.
        overlapped: gradients are summed while the last micro-batch goes backward.
    """
    peak, share = cluster.device.peak.of(setup.precision), share_of_peak(setup.precision)
    if peak is None or share is None:
        return None
    ranks = setup.tensor * setup.pipeline * setup.context
    attention = work.busiest_attention / work.busiest_flops
    done = passes(shape, setup, live_reference=live_reference, attention=attention)
    flops = work.busiest_flops * done / ranks
    compute = flops / (peak * share * 1e12)
    micro_batches = max(work.micro_batches, 1.0)
    # Narayanan et al. 2021, section 2.2.
    bubble = compute * (setup.pipeline - 1) / (setup.chunks * micro_batches)
    gradients, weights = data_seconds(shape, setup, cluster)
    if overlapped:
        gradients = max(0.0, gradients - compute * 2 / 3 / micro_batches)
    talked = model_seconds(shape, setup, work, cluster) + gradients + weights
    talked += swap_seconds(shape, setup, cluster)
    return Step(compute, bubble, talked)


def _bandwidth(cluster: Cluster, ranks: int, members: int = 1) -> float:
    """Bytes a second of a device in a group that spans `ranks` neighbouring ones.

    Between nodes a ring of several members in each uses the ports of all of them.
    """
    inside, outside = cluster.device.inside * 1e9, cluster.device.outside * 1e9
    return inside if ranks <= cluster.per_node else min(inside, outside * members)


def model_seconds(shape: Shape, setup: Setup, work: Work, cluster: Cluster) -> float:
    """What the ranks of one copy of the model tell each other in an update."""
    tensor, context, layers = setup.tensor, setup.context, shape.layers / setup.pipeline
    tokens = work.busiest_slots / context
    state = tokens * shape.hidden * setup.width
    # Each of two blocks gathers and scatters forward, and does both and gathers again backward,
    # for the gradient of its weights. What adapters add is rank / hidden size of it.
    inner = (
        (10 if setup.adapters is None else 8)
        * state
        * (tensor - 1)
        / tensor
        / _bandwidth(cluster, tensor)
    )
    # Keys and values go round, and backward their gradients with them.
    keys = tokens * 2 * shape.groups * shape.head / tensor * setup.width
    inner += 3 * keys * (context - 1) / _bandwidth(cluster, tensor * context)
    seconds = layers * inner
    if setup.pipeline > 1:
        # Forward and backward over a boundary on either side, for each chunk.
        ranks = tensor * context * setup.data * setup.pipeline
        seconds += 2 * setup.chunks * state / setup.along / _bandwidth(cluster, ranks)
    return seconds


def data_seconds(shape: Shape, setup: Setup, cluster: Cluster) -> tuple[float, float]:
    """Summing gradients in float32, and gathering weights, over copies, once an update."""
    tensor, copies = setup.tensor, setup.data * setup.context
    members = max(1, cluster.per_node // tensor)
    once = trained_parameters(shape, setup, 0) * (copies - 1) / copies
    once /= _bandwidth(cluster, tensor * copies, members)
    if setup.distributed_optimizer:
        return 4 * once, setup.width * once
    return 8 * once, 0.0


def swap_seconds(shape: Shape, setup: Setup, cluster: Cluster) -> float:
    """Weights to the host, the reference's from there, and the weights back, once an update."""
    return 3 * swapped_bytes(shape, setup, 0) / (cluster.device.host * 1e9)
