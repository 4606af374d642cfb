"""What other ranks wrote, and this machine shows late, is in the manifest and in the cache."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.io.files import file_sha256
from nemo_gdpo.io.manifest import why_invalid
from nemo_gdpo.io.staged import stage
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.training import reference as reference_module
from nemo_gdpo.training.checkpoint_save import Saving
from nemo_gdpo.training.reference_shards import ShardWriter
from nemo_gdpo.training.reference_store import load_cache
from tests.training.test_reference_store import CUT, KEY

DELAY = 0.4


def test_a_checkpoint_lists_what_another_rank_wrote(tmp_path: Path) -> None:
    saving = Saving(tmp_path / "checkpoints" / "step_00000004")
    staged = stage(saving.final, also="step_*")
    saving._staged = staged
    own, late = staged.path / "dist" / "own", tmp_path / "other node"
    own.parent.mkdir()
    own.write_bytes(b"12345")
    late.write_bytes(b"123")
    # As the ranks tell each other: each has hashed what it wrote itself.
    described = {
        f"dist/{name}": {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for name, file in (("own", own), ("late", late))
    }
    timer = threading.Timer(DELAY, lambda: late.rename(own.with_name("late")))
    timer.start()
    saving._move(dict(described))
    timer.join()
    assert json.loads((saving.final / "manifest.json").read_text())["files"] == described
    assert why_invalid(saving.final) is None


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
