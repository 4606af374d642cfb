"""How far two computations of one model lie apart by rounding alone: measured, at step 0.

Policy and reference are one model then, but not one computation: rows stand in other
micro-batches, other ranks may have computed them, with other kernels. In fp32 that is 1e-5 of a
log-prob. In 16 or 8 bit it depends on the model and its depth, so it is measured: the first batch
is computed once more with every embedding moved by one unit of the precision, up or down. From
there on every rounding falls out anew, as it does in another order of sums. What comes out differs
from the first result by the rounding errors of both, which are independent, and by the small push;
a reference that differs by rounding differs by the errors alone. (In bf16 on a model of two layers:
0.0047 nats a token by the push, 0.0050 between bf16 and fp32, and 0.045 when rope's base is
another.)

Errors of the tokens of a response are independent to first order, so that a response of T tokens is
off by sqrt(T) times the error of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.models.batch import PreferenceMicroBatch, pair_logps
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.objectives.pairwise import response_logp

UNIT = {"bf16": 2.0**-8}
"""Precision -> distance of a number to the next one, relative to it, at least. All others but fp32
multiply 8 bit operands with three bits of mantissa."""
UNIT_FP8 = 2.0**-4
SAMPLES = 32
"""Responses, at least, from which the noise is estimated."""


@dataclass(frozen=True)
class Noise:
    """What rounding does to this model in this precision; root mean squares."""

    logp: float
    """Of a response's log-prob, divided by the root of its number of tokens; nats."""
    loss: float
    """Of a pair's loss."""


@torch.no_grad()
def measure_noise(
    model: PreferenceModel, micro_batches: list[PreferenceMicroBatch], *, batch_size: int
) -> Noise | None:
    """The noise of a model on a global batch; None in fp32. Collective.

    Args:
        model: whose policy equals its reference.
        micro_batches: this rank's of the global batch.
        batch_size: pairs of the global batch.
    """
    if model.config.precision == "fp32":
        return None
    unit = UNIT.get(model.config.precision, UNIT_FP8)
    plain = model.get_token_logprobs(micro_batches)
    device = micro_batches[0].batch_index_B.device
    total = torch.zeros(4, dtype=torch.float64, device=device)
    for seed in range(math.ceil(SAMPLES / (2 * batch_size))):
        with model.moved_embeddings(unit, seed):
            moved = model.get_token_logprobs(micro_batches)
        if model.holds_loss:
            total += _squares(model, micro_batches, plain, moved).to(device)
    dist.all_reduce(total)
    logp, responses, loss, pairs = total.tolist()
    return Noise(math.sqrt(logp / responses), math.sqrt(loss / pairs))


def _squares(
    model: PreferenceModel,
    micro_batches: Sequence[PreferenceMicroBatch],
    plain: Sequence[Tensor],
    moved: Sequence[Tensor],
) -> Tensor:
    """Sums over this rank's pairs: squares of log-probs a token, responses, of losses, pairs."""
    sums = torch.zeros(4, dtype=torch.float64)
    for batch, one_TC, other_TC in zip(micro_batches, plain, moved, strict=True):
        one, other = (pair_logps(values, batch.rows) for values in (one_TC, other_TC))
        losses = [model.objective(one, side, batch.targets).loss_N for side in (one, other)]
        change_N = (losses[1] - losses[0]).double()
        for left, right in ((one.chosen, other.chosen), (one.rejected, other.rejected)):
            gap_N = (response_logp(left) - response_logp(right)).double()
            sums[0] += float((gap_N.square() / left.mask_NT.sum(dim=1)).sum())
            sums[1] += len(gap_N)
        sums[2] += float(change_N.square().sum())
        sums[3] += len(change_N)
    return sums
