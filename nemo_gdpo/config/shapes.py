"""Multiples that row lengths and layer sizes must have: for an even cut, and for FP8 kernels.

From Transformer Engine 2.12: `assert_dim_for_fp8_exec` and `assert_dim_for_all_gather` of
`pytorch/utils.py`, `is_quantizable` and `make_empty` of the quantisers in `pytorch/tensor/`, and
`CanonicalizeGemmInput` of `common/gemm/cublaslt_gemm.cu`, where the caller must pad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Multiples:
    """What a rank's share of each dimension of a linear layer must be a multiple of."""

    tokens: int = 1
    """All positions of a micro-batch: they are summed over in the gradient of a weight."""
    hidden: int = 1
    """The hidden size, which no rank has a part of."""
    features: int = 1
    """Sizes that tensor parallelism cuts: of queries, keys and values, and of the FFN."""


def fp8_multiples(precision: str, *, sequence_parallel: bool) -> Multiples:
    """What the kernels of a precision ask for; 1 throughout for fp32 and bf16.

    Args:
        precision: value of the `precision` key.
        sequence_parallel: activations are cut along the sequence, and gathered in FP8.
    """
    if precision == "fp8_mxfp8":
        return Multiples(32, 32, 32)  # blocks of 32, along rows and along columns
    if precision == "fp8_blockwise" and sequence_parallel:
        # What is gathered has whole blocks of 128 in both dimensions on every rank.
        return Multiples(128, 128, 16)
    if precision in ("fp8_blockwise", "fp8_tensorwise"):
        return Multiples(16, 16, 16)
    return Multiples()


def sequence_multiple(context: int) -> int:
    """Each sequence of a packed row takes a multiple of this, in tokens.

    Each is cut over the ranks by itself, in two chunks a rank.

    Args:
        context: context-parallel ranks.
    """
    return 2 * context if context > 1 else 1


def length_multiple(
    *, tensor: int, context: int, sequence_parallel: bool, precision: str, rows: int
) -> int:
    """Row lengths must be a multiple of this, in tokens.

    Args:
        tensor: tensor-parallel ranks.
        context: context-parallel ranks.
        sequence_parallel: tensor-parallel ranks share out the sequence.
        precision: value of the `precision` key.
        rows: rows of a micro-batch; 1 when it is packed.
    """
    # Context parallelism gives each rank 2 of 2 * CP chunks; sequence parallelism cuts its part.
    sequence = tensor if sequence_parallel else 1
    chunks = sequence_multiple(context)
    tokens = fp8_multiples(precision, sequence_parallel=sequence_parallel).tokens
    # A rank has rows x length / (sequence x context) tokens.
    of_a_row = tokens // math.gcd(tokens, rows)
    return math.lcm(sequence * context * of_a_row, chunks * sequence, 8)
