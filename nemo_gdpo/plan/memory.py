"""Memory of a rank, in bytes, stage by stage of the pipeline.

What is counted is what this project allocates: bf16 weights (fp32 with `precision=fp32`), gradients
in float32 (`grad_reduce_in_fp32`), under bf16 a float32 copy and two moments of Adam, which the
distributed optimizer shares out over data- and context-parallel ranks, and the tensors that a layer
keeps for its backward pass under fused attention (Korthikanti et al. 2022, section 4, for this
architecture): inputs of norms and products, queries, keys, values, and the MLP's two inner ones.
With adapters the base is its weights alone: gradients and optimizer states are the adapters', and a
product whose matrix is frozen keeps no input. A base in NF4 is loaded as it is, and then quantised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nemo_gdpo.plan.adapters import ATTENTION, MLP, Adapters
from nemo_gdpo.plan.shape import Shape
from nemo_gdpo.precisions import NF4_BLOCK, in_fp8

RESERVE = 5e9
"""Bytes for CUDA, NCCL's own buffers and what is made in between: an allowance, not computed."""
TILE_LOGITS = 2**25
"""Logits that exist at once in bfloat16 on a GPU (`nemo_gdpo.logprobs.tiles`)."""
SCORE_BYTES = 8
"""Of one attention score that is written out: tanh 2, softmax in float32 4, its bf16 copy 2."""
NF4_BYTES = 0.5 + 4 / NF4_BLOCK
"""Of a number: four bits, and a float32 maximum for each block (`nemo_gdpo.models.nf4`)."""
RECOMPUTE = (None, "selective", "full")


@dataclass(frozen=True)
class Setup:
    """What of a run decides its memory. Sizes of the mesh count ranks."""

    tensor: int = 1
    pipeline: int = 1
    chunks: int = 1
    """Model chunks of a rank (virtual pipeline)."""
    context: int = 1
    data: int = 1
    sequence_parallel: bool = False
    precision: str = "bf16"
    recompute: str | None = None
    fused: bool = True
    """Transformer Engine's layers; the local ones keep more."""
    distributed_optimizer: bool = False
    resident: bool = False
    """A second copy of the weights is kept."""
    swapped: bool = False
    """It is kept in host memory, and takes the place of the weights once an update."""
    adapters: Adapters | None = None
    """These are trained, and nothing else."""
    four_bit: bool = False
    """The frozen matrices of every layer are in NF4."""
    prefix_sharing: bool = False
    """Rows hold each prompt once; its keys and values are repeated for the second response."""
    positions: int = 0
    """Of a micro-batch at most, over all context-parallel ranks."""
    row: int = 0
    """The longest sequence, for scores that are written out."""
    micro_batches: int = 1
    """Of one rank in an update."""
    logprob_tokens: int = 1024
    vocab_multiple: int = 128
    """Per tensor-parallel rank."""

    @property
    def width(self) -> int:
        """Bytes of a weight and of an activation."""
        return 4 if self.precision == "fp32" else 2

    @property
    def along(self) -> int:
        """Ranks that share what tensor parallelism alone does not cut."""
        return self.tensor if self.sequence_parallel else 1

    @property
    def tokens(self) -> float:
        """Positions of a micro-batch on a rank."""
        return self.positions / self.context


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by what they are for."""

    weights: float
    fp8_copies: float
    """Transformer Engine keeps both orders of a weight in FP8 beside the bf16 one."""
    gradients: float
    optimizer: float
    reference: float
    activations: float
    head: float
    """Log-probs: the hidden states at labels, and a part of the logits."""
    buffers: float
    """What is gathered along the sequence, and sent between stages."""
    reserve: float = RESERVE
    host: float = 0.0
    """Of them none: in host memory, the reference and what it takes the place of."""
    loading: float = 0.0
    """What the weights are before they are quantised, at the beginning; 0 where they never are."""

    @property
    def static(self) -> float:
        """What is there between two updates."""
        return self.weights + self.fp8_copies + self.gradients + self.optimizer + self.reference

    @property
    def total(self) -> float:
        """All of it, at the time when it is most."""
        training = self.static + self.activations + self.head + self.buffers
        return max(training, self.loading) + self.reserve


def held_parameters(shape: Shape, setup: Setup, stage: int) -> int:
    """Parameters of a rank of a pipeline stage; the vocabulary is padded as the builder pads it."""
    multiple = setup.vocab_multiple * setup.tensor
    rows = -(-shape.vocabulary // multiple) * multiple // setup.tensor
    layer = shape.matrices // setup.tensor + shape.vectors
    first, last = stage == 0, stage == setup.pipeline - 1
    ends = first + last if not (shape.tied and setup.pipeline == 1) else 1
    return shape.layers // setup.pipeline * layer + ends * rows * shape.hidden + last * shape.hidden


def adapter_parameters(shape: Shape, setup: Setup) -> int:
    """Of the adapters of a rank; every stage of a pipeline has as many."""
    if setup.adapters is None:
        return 0
    return shape.layers // setup.pipeline * setup.adapters.parameters(shape, setup.tensor)


def trained_parameters(shape: Shape, setup: Setup, stage: int) -> int:
    """Parameters of a rank of a pipeline stage that have gradients."""
    if setup.adapters is None:
        return held_parameters(shape, setup, stage)
    return adapter_parameters(shape, setup)


def swapped_bytes(shape: Shape, setup: Setup, stage: int) -> float:
    """Of the weights whose place the reference takes for a moment: those that training changes."""
    return float(setup.width * trained_parameters(shape, setup, stage)) if setup.swapped else 0.0


def optimizer_bytes(setup: Setup) -> float:
    """Of one parameter of a rank: two moments, and under bf16 a float32 copy of the weight."""
    whole = 8 if setup.precision == "fp32" else 12
    return whole / (setup.data * setup.context) if setup.distributed_optimizer else float(whole)


def layer_bytes(shape: Shape, setup: Setup) -> float:
    """What one layer keeps of one position of this rank, scores apart.

    Local layers keep a norm's values before and after they are scaled, the first in float32, the
    MLP's gate and its activation beside the product, and the projection that values are a view of.
    With adapters: what comes out of a norm is kept where one reads it, and not for the scale, which
    is frozen; and what each A gives.
    """
    if setup.recompute == "full":
        return setup.width * shape.hidden / setup.along
    repeated = 2 if setup.prefix_sharing else 1
    attention = 2 * shape.head * (shape.heads + repeated * shape.groups)
    inputs, mlp, column, row = 2, 3 * shape.ffn, 0, 0
    if setup.adapters is not None:
        inputs = setup.adapters.has(ATTENTION) + setup.adapters.has(MLP)
        mlp -= shape.ffn * (not setup.adapters.has(("down_proj",)))
        column, row = _kept_adapters(shape, setup, setup.adapters).lows()
    if recomputes_mlp(shape, setup):
        mlp = 0
        # The norm is a part of what is computed again, but where an adapter reads what it gives.
        inputs -= setup.adapters is None
    hidden = (shape.norms + inputs) * shape.hidden + row
    kept = setup.width * (hidden / setup.along + (attention + mlp) / setup.tensor + column)
    if setup.fused:
        return kept
    projection = shape.head * (shape.heads + shape.groups)
    more = setup.width * (2 * shape.ffn + projection) / setup.tensor
    norm = 4 if setup.adapters is None else 4 - setup.width
    return kept + norm * shape.norms * shape.hidden / setup.along + more


def _kept_adapters(shape: Shape, setup: Setup, adapters: Adapters) -> Adapters:
    """Those that are not computed again."""
    return adapters.without_mlp() if recomputes_mlp(shape, setup) else adapters


def stacked_bytes(shape: Shape, setup: Setup) -> float:
    """What one layer keeps whatever the positions: every A, put together for one product."""
    if setup.adapters is None or setup.recompute == "full":
        return 0.0
    kept = _kept_adapters(shape, setup, setup.adapters)
    return float(setup.width * kept.firsts(shape, setup.tensor))


def recomputes_mlp(shape: Shape, setup: Setup) -> bool:
    """Whether selective recomputation is of the MLP, and not of scores that are written out.

    See `nemo_gdpo.platform.layers.recompute_modules`.
    """
    return setup.recompute == "selective" and setup.fused and not shape.capped


def score_bytes(shape: Shape, setup: Setup) -> float:
    """Scores of one layer for one position of this rank, where they are written out."""
    return SCORE_BYTES * shape.heads / setup.tensor * setup.row if shape.capped else 0.0


def layers_in_flight(shape: Shape, setup: Setup, stage: int) -> float:
    """Layers whose activations a rank keeps at once: of one layer for each micro-batch.

    1F1B keeps as many micro-batches as there are stages from this one on; interleaved (Narayanan
    et al. 2021, section 2.2), a stage's warm-up in chunks, and one more.
    """
    after, chunks = setup.pipeline - stage, setup.chunks
    kept = after if chunks == 1 else 2 * (after - 1) + (chunks - 1) * setup.pipeline + 1
    kept = min(kept, setup.micro_batches * chunks)
    return kept * shape.layers / (setup.pipeline * chunks)


def activation_bytes(shape: Shape, setup: Setup, stage: int) -> float:
    """Of all layers in flight, and of the one that is being computed again."""
    kept, scores = layer_bytes(shape, setup), score_bytes(shape, setup)
    once = 0.0
    if setup.recompute is None:
        kept += scores
    else:
        once = layer_bytes(shape, replace(setup, recompute=None)) + scores
        once -= layer_bytes(shape, setup)
    each = setup.tokens * kept + stacked_bytes(shape, setup)
    return layers_in_flight(shape, setup, stage) * each + setup.tokens * once


def head_bytes(shape: Shape, setup: Setup, stage: int) -> float:
    """On the last stage; every position is taken for a label, which is the most there can be."""
    if stage < setup.pipeline - 1:
        return 0.0
    columns = -(-shape.vocabulary // setup.tensor)
    logits = setup.logprob_tokens * columns
    if setup.precision != "fp32":
        logits = min(logits, TILE_LOGITS)
    # The final norm's input and output, the gathered and the picked states, and their gradient.
    hidden = shape.hidden * (2 * setup.width / setup.along + 2 * setup.width + 4)
    return logits * (4 + setup.width) + setup.tokens * hidden


def buffer_bytes(shape: Shape, setup: Setup) -> float:
    """One gathered input of a layer, and two of what goes to a neighbouring stage.

    And of a base in NF4 the largest matrix, gate and up, in the precision of a product.
    """
    state = setup.tokens * shape.hidden * setup.width
    gathered = state if setup.sequence_parallel else 0.0
    dense = setup.width * 2 * shape.hidden * shape.ffn / setup.tensor if setup.four_bit else 0.0
    return gathered + (2 * state / setup.along if setup.pipeline > 1 else 0.0) + dense


def saved_bytes(shape: Shape, setup: Setup) -> float:
    """What NF4 makes the weights of a rank less; every stage of a pipeline has as many layers."""
    if not setup.four_bit:
        return 0.0
    linear = shape.layers // setup.pipeline * shape.linear / setup.tensor
    return linear * (setup.width - NF4_BYTES)


def memory_of_stages(shape: Shape, setup: Setup) -> list[Memory]:
    """The memory of a rank of each stage, in the order of the pipeline."""
    found = []
    for stage in range(setup.pipeline):
        held = held_parameters(shape, setup, stage)
        trained = trained_parameters(shape, setup, stage)
        loaded = float(setup.width * (held + adapter_parameters(shape, setup)))
        weights = loaded - saved_bytes(shape, setup)
        layers = shape.layers // setup.pipeline * shape.matrices / setup.tensor
        found.append(
            Memory(
                weights=weights,
                fp8_copies=2 * layers if in_fp8(setup.precision) else 0.0,
                gradients=4.0 * trained,
                optimizer=optimizer_bytes(setup) * trained,
                reference=weights if setup.resident else 0.0,
                activations=activation_bytes(shape, setup, stage),
                head=head_bytes(shape, setup, stage),
                buffers=buffer_bytes(shape, setup),
                host=2 * swapped_bytes(shape, setup, stage),
                loading=loaded if setup.four_bit else 0.0,
            )
        )
    return found


def fullest(found: list[Memory]) -> Memory:
    """The stage that needs most."""
    return max(found, key=lambda memory: memory.total)
