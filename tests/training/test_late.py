"""What other ranks wrote, and this machine shows late, is in the manifest and in the cache."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.io.files import file_sha256
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.training import checkpoint as checkpoint_module
from nemo_gdpo.training import reference as reference_module
from nemo_gdpo.training.checkpoint import Checkpointer
from nemo_gdpo.training.reference_shards import ShardWriter
from nemo_gdpo.training.reference_store import load_cache
from tests.training.test_reference_store import CUT, KEY

DELAY = 0.4


def test_a_checkpoint_lists_what_another_rank_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = tmp_path / "staged"
    (staged / "dist").mkdir(parents=True)
    (staged / "dist" / "own").write_bytes(b"12345")
    (staged / "dist" / "grows").write_bytes(b"1")
    seen_by_other = {"dist/late": 3, "dist/grows": 4}
    heard: list[Any] = []

    def gathered(value: Any) -> list[Any]:
        heard.append(value)
        return [value, seen_by_other] if len(heard) == 1 else [value]

    def appear() -> None:
        (staged / "dist" / "late").write_bytes(b"123")
        (staged / "dist" / "grows").write_bytes(b"1234")

    monkeypatch.setattr(checkpoint_module, "gathered", gathered)
    own_mesh: Any = SimpleNamespace(rank=0, world_size=1)
    nothing: Any = None
    checkpointer = Checkpointer(
        tmp_path, nothing, nothing, own_mesh, write_assets=lambda path: None, keep=1
    )
    timer = threading.Timer(DELAY, appear)
    timer.start()
    described = checkpointer._describe(staged)
    timer.join()
    assert heard[0] == {"dist/own": 5, "dist/grows": 1}
    assert described == {
        f"dist/{name}": {"bytes": size, "sha256": file_sha256(staged / "dist" / name)}
        for name, size in (("own", 5), ("late", 3), ("grows", 4))
    }


def _pair(number: int) -> TokenizedPair:
    answer = TokenizedResponse((3 + number, 2), True)
    return TokenizedPair(
        id=f"p{number}", prompt_ids=(1,), chosen=answer, rejected=TokenizedResponse((2,), True)
    )


def test_a_cache_is_finished_with_the_shards_of_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = replace(KEY, columns=("label",))
    hidden = tmp_path / "other node"
    hidden.mkdir()
    other = ShardWriter(hidden, key.digest(), columns=1, part=1, parts=2)
    other.begin(0)
    for row, tokens in ((2, 2), (3, 1)):
        other.add(row, torch.full((tokens, 1), -float(row)))
    other.flush()
    (shard,) = hidden.iterdir()

    def compute(work: Any, shared: Path, kept: Any) -> Any:
        writer = ShardWriter(shared, key.digest(), columns=1, part=0, parts=2)
        writer.begin(0)
        for row, tokens in ((0, 2), (1, 1)):
            writer.add(row, torch.full((tokens, 1), -float(row)))
        writer.flush()
        timer = threading.Timer(DELAY, lambda: shard.rename(shared / shard.name))
        timer.start()
        return writer.written

    monkeypatch.setattr(reference_module, "_compute_rows", compute)
    monkeypatch.setattr(reference_module, "gathered", lambda own: [own, other.written])
    nothing: Any = None
    own_mesh: Any = SimpleNamespace(rank=0, world_size=1, data_rank=0, is_main=True)
    builder: Any = SimpleNamespace(pairs=[_pair(0), _pair(1)])
    directory = tmp_path / "cache" / "train"
    assert reference_module.compute_cache(
        nothing, own_mesh, builder, directory, key,
        cut=CUT, stop=StopRequest(), label="reference",
    )  # fmt: skip
    store = load_cache(directory, key, [2, 1, 2, 1])
    assert store.columns([0, 1]).flatten().tolist() == [0, 0, -2, -2, -1, -3]
