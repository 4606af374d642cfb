"""A vocabulary split over two ranks gives what the whole vocabulary gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_gdpo.logprobs import selected_logprobs, selected_logprobs_reference

from .synthetic import Inputs, evaluate, random_inputs

pytestmark = [pytest.mark.slow, pytest.mark.parallel]

RANKS, ROWS = 2, 24

# name -> (true vocabulary, options, tokens); rank 0 holds ids 0 to 11, rank 1 ids 12 to 23.
CASES: dict[str, tuple[int | None, dict[str, Any], int]] = {
    "no padding, EOS on rank 0": (None, {"eos_id": 7}, 11),
    "no padding, EOS on rank 1": (None, {"eos_id": 20}, 11),
    "no EOS": (None, {}, 11),
    "padding in the second shard": (19, {"eos_id": 18}, 11),
    "second shard is padding alone": (12, {"eos_id": 3}, 11),
    "second and part of the first shard are padding": (9, {"eos_id": 8}, 11),
    "soft-cap": (19, {"eos_id": 18, "logit_softcap": 3.0}, 11),
    "tempered": (19, {"eos_id": 18, "eos_temperature": 0.1}, 11),
    "tempered, padding alone": (12, {"eos_id": 3, "eos_temperature": 0.1}, 11),
    "tempered and soft-cap": (
        None,
        {"eos_id": 0, "eos_temperature": 0.1, "logit_softcap": 3.0},
        11,
    ),
    "chunks of one": (19, {"eos_id": 18, "chunk_tokens": 1}, 11),
    "chunks with a rest": (19, {"eos_id": 18, "chunk_tokens": 4, "eos_temperature": 0.5}, 11),
    "no tokens": (19, {"eos_id": 18}, 0),
}


def whole(name: str) -> Inputs:
    """Inputs of a case; padded rows hold huge numbers, which must not matter."""
    size, _, tokens = CASES[name]
    inputs = random_inputs(tokens, ROWS, vocab_size=size)
    if size is not None:
        inputs.weight_VH[size:] = 1e4
    return inputs


def run_rank(rank: int, folder: str) -> None:
    """Every case on this rank's shard; results go to a file."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    group = dist.group.WORLD
    held = slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS)
    results = {}
    for name, (size, options, _) in CASES.items():
        inputs = whole(name)
        shard = Inputs(
            inputs.hidden_TH,
            inputs.weight_VH[held],
            inputs.labels_T,
            inputs.label_factor_T,
            inputs.eos_factor_T,
        )
        columns, hidden, weight = evaluate(
            selected_logprobs, shard, vocab_size=size, tp_group=group, **options
        )
        values = [None if column is None else column.detach() for column in columns]
        results[name] = [*values, hidden, weight]
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found, by case; the ranks are started once for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", list(CASES))
def test_sharded_equals_whole(by_rank: list[dict[str, Any]], name: str) -> None:
    """Values and the hidden gradient on every rank; the shards' weight gradients put together."""
    size, options, _ = CASES[name]
    options = {key: value for key, value in options.items() if key != "chunk_tokens"}
    columns, hidden, weight = evaluate(
        selected_logprobs_reference, whole(name), vocab_size=size, **options
    )
    for results in by_rank:
        *values, rank_hidden, _ = results[name]
        for found, expected in zip(values, columns, strict=True):
            if expected is None:
                assert found is None
            else:
                torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(rank_hidden, hidden, rtol=1e-12, atol=1e-12)
    together = torch.cat([results[name][-1] for results in by_rank])
    torch.testing.assert_close(together, weight, rtol=1e-12, atol=1e-12)
    if size is not None:
        assert (together[size:] == 0).all()


def test_ranks_agree_bit_for_bit(by_rank: list[dict[str, Any]]) -> None:
    """Ranks that disagreed in the last bit would drift apart over training."""
    for name in CASES:
        for one, other in zip(by_rank[0][name][:-1], by_rank[1][name][:-1], strict=True):
            assert (one is None and other is None) or torch.equal(one, other), name
