"""Files of equal tensors and equal metadata are equal files."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load, save

from nemo_gdpo.io.tensor_file import with_ordered_metadata

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int64)}
METADATA = {name: f'the value of {name} is "ä"' for name in ("format", "key", "content", "base")}


def header(content: bytes) -> dict[str, object]:
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    found: dict[str, object] = json.loads(content[8 : 8 + length])
    return found


def test_metadata_is_in_one_order() -> None:
    written = [save(TENSORS, metadata=METADATA) for _ in range(20)]
    assert len(set(written)) > 1, "safetensors orders metadata by itself: the function can go"
    (ordered,) = {with_ordered_metadata(content) for content in written}
    assert header(ordered) == header(written[0])
    assert list(header(ordered)["__metadata__"]) == sorted(METADATA)  # type: ignore[call-overload]
    found = load(ordered)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
