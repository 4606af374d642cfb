# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Device code of the head, in Triton. `passes.py` starts it and says what the arguments are.

Under TRITON_INTERPRET=1 it runs on a CPU, one program after the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

# One number a token: where a row of them begins depends on how many tokens there are, and a kernel
# would be compiled anew, in the middle of a run, for each way that it can be aligned.
TOKENS = ["labels", "highest", "total", "tempered_total", "label_logit", "eos_logit"]
GRADIENT_TOKENS = ["labels", "log_sum_exp", "grad_total"]
ENTRIES = ["order", "rows", "factor"]


@triton.jit
def tanh(x):
    """To float32's precision near 0 too, where 1 - e^-2x loses digits: there its series."""
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    square = x * x
    series = 1.0 + square * (
        -1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * (62.0 / 2835.0)))
    )
    return tl.where(size < 0.25, x * series, tl.where(x < 0.0, -far, far))


@triton.jit(do_not_specialize=["first_id", "eos_id"], do_not_specialize_on_alignment=TOKENS)
def score(
    tile,
    labels,
    highest,
    total,
    tempered_total,
    label_logit,
    eos_logit,
    first_id,
    eos_id,
    columns,
    stride,
    softcap,
    inverse_temperature,
    CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a token. The running maximum and sums are read, and written back at the end."""
    token = tl.program_id(0).to(tl.int64)
    logits = tile + token * stride
    high = tl.load(highest + token)
    sum_above = tl.load(total + token)
    tempered_sum = tl.load(tempered_total + token)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        z = tl.load(logits + column, mask=inside, other=-float("inf"))
        if CAPPED:
            z = tl.where(inside, softcap * tanh(z / softcap), -float("inf"))
        higher = tl.maximum(high, tl.max(z, axis=0))
        # Nothing but -inf so far: any finite number serves, and -inf - -inf would not.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        above = z - base
        lag = high - base
        sum_above = sum_above * tl.exp(lag) + tl.sum(tl.exp(above), axis=0)
        if TEMPERED:
            tempered_sum = tempered_sum * tl.exp(lag * inverse_temperature) + tl.sum(
                tl.exp(above * inverse_temperature), axis=0
            )
        high = higher
    tl.store(highest + token, high)
    tl.store(total + token, sum_above)
    if TEMPERED:
        tl.store(tempered_total + token, tempered_sum)
    label_column = tl.load(labels + token) - first_id
    here = (label_column >= 0) & (label_column < columns)
    z = tl.load(logits + label_column, mask=here, other=0.0)
    if CAPPED:
        z = softcap * tanh(z / softcap)
    tl.store(label_logit + token, z, mask=here)
    eos_column = eos_id - first_id
    here = (eos_id >= 0) & (eos_column >= 0) & (eos_column < columns)
    z = tl.load(logits + eos_column, mask=here, other=0.0)
    if CAPPED:
        z = softcap * tanh(z / softcap)
    tl.store(eos_logit + token, z, mask=here)


@triton.jit(
    do_not_specialize=["first_id", "eos_id"], do_not_specialize_on_alignment=GRADIENT_TOKENS
)
def gradient(
    tile,
    grad,
    labels,
    log_sum_exp,
    grad_total,
    first_id,
    eos_id,
    columns,
    stride,
    grad_stride,
    softcap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a token and block of columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    z = tl.load(tile + token * stride + column, mask=inside, other=0.0)
    slope = 1.0
    if CAPPED:
        bent = tanh(z / softcap)
        z = softcap * bent
        slope = 1.0 - bent * bent
    value = -tl.load(grad_total + token) * tl.exp(z - tl.load(log_sum_exp + token)) * slope
    # A negative EOS id, of none, equals no column's.
    ids = first_id + column
    apart = (ids == tl.load(labels + token)) | (ids == eos_id)
    value = tl.where(apart, 0.0, value)
    tl.store(grad + token * grad_stride + column, value.to(tl.bfloat16), mask=inside)


@triton.jit(
    do_not_specialize=["first_row", "end_row", "tokens"], do_not_specialize_on_alignment=ENTRIES
)
def add_rows(
    total,
    hidden,
    order,
    rows,
    factor,
    first_row,
    end_row,
    tokens,
    width,
    BLOCK: tl.constexpr,
):
    """One program an entry; the first entry of each row does the work for all of the row's."""
    entry = tl.program_id(0)
    row = tl.load(rows + entry)
    if (row < first_row) | (row >= end_row):
        return
    before = tl.load(rows + entry - 1, mask=entry > 0, other=-1)
    if before == row:
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = total + (row - first_row) * width + column
    value = tl.load(place, mask=inside, other=0.0)
    current = row
    while current == row:
        token = tl.load(order + entry)
        state = tl.load(hidden + token * width + column, mask=inside, other=0.0)
        value += tl.load(factor + entry) * state.to(tl.float32)
        entry += 1
        current = tl.load(rows + entry, mask=entry < tokens, other=-1)
    tl.store(place, value, mask=inside)
