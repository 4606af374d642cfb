"""The head over a sharded vocabulary, for a launch whose ranks are a tensor-parallel group.

Importable without pytest: a launcher calls `run` on every rank; it raises on the first difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.logprobs import (
    SelectedLogprobs,
    selected_logprobs,
    selected_logprobs_reference,
)

ROWS, TOKENS, WIDTH = 12, 37, 8
"""Vocabulary rows a rank, response tokens, hidden size."""


def run(rank: int, world: int, group: dist.ProcessGroup | None = None) -> None:
    """Compare values and gradients with one whole vocabulary, over kinds of padding.

    Args:
        rank: in `group`.
        world: ranks of `group`, at least 2; each holds `ROWS` rows.
        group: an initialised process group; None for the default one.

    Raises:
        AssertionError: a column or a gradient differs from the whole vocabulary's.
    """
    tp_group = dist.group.WORLD if group is None else group
    assert tp_group is not None
    rows = world * ROWS
    sizes = {
        "no padding": rows,
        "last shard partly padding": rows - 5,
        "last shard padding alone": rows - ROWS,
        "padding from the first shard on": ROWS - 3,
    }
    for padding, size in sizes.items():
        for options in (
            {"eos_id": size - 1},
            {"eos_id": 0, "eos_temperature": 0.1},
            {"eos_id": size - 1, "eos_temperature": 0.5, "logit_softcap": 3.0},
            {},
        ):
            _compare(f"{padding}, {options}", rank, tp_group, rows, size, options)


def _compare(
    case: str,
    rank: int,
    tp_group: dist.ProcessGroup,
    rows: int,
    size: int,
    options: dict[str, Any],
) -> None:
    generator = torch.Generator().manual_seed(size)
    hidden_TH = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight_VH = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    labels_T = torch.randint(size, (TOKENS,), generator=generator)
    factors_2T = torch.randn(2, TOKENS, generator=generator, dtype=torch.float64)
    # Padding that took part would drown every real logit.
    weight_VH[size:] = 1e4
    mine = slice(rank * ROWS, (rank + 1) * ROWS)

    def evaluate(score: Callable[..., SelectedLogprobs], weight: Tensor, **more: Any) -> list[Any]:
        hidden, weight = hidden_TH.clone().requires_grad_(), weight.clone().requires_grad_()
        found = score(hidden, weight, labels_T, vocab_size=size, **options, **more)
        loss = (found.label_T * factors_2T[0]).sum()
        if found.eos_T is not None:
            loss = loss + (found.eos_T * factors_2T[1]).sum()
        return [*found, *torch.autograd.grad(loss, (hidden, weight))]

    *expected, expected_weight = evaluate(selected_logprobs_reference, weight_VH)
    expected.append(expected_weight[mine])
    shard_VH = weight_VH[mine]
    for name, found in {
        "chunked": evaluate(selected_logprobs, shard_VH, tp_group=tp_group, chunk_tokens=10),
        "plain": evaluate(selected_logprobs_reference, shard_VH, tp_group=tp_group),
    }.items():
        columns = ("label", "EOS", "tempered EOS", "hidden gradient", "weight gradient")
        for column, one, other in zip(columns, found, expected, strict=True):
            if other is None:
                assert one is None
                continue
            torch.testing.assert_close(
                one,
                other,
                rtol=1e-11,
                atol=1e-11,
                msg=lambda text, where=f"{name}, {column}, {case}": f"{where}: {text}",
            )
