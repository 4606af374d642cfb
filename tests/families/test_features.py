"""Each feature shows in the logits: a model that lacked it would fail its parity test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import models

OnMesh = Callable[[int, int], Path]
CASES = [(kind, feature) for kind, features in models.ABLATIONS.items() for feature in features]


@pytest.mark.parametrize(("kind", "feature"), CASES)
def test_switched_off_it_is_seen(on_mesh: OnMesh, kind: str, feature: str) -> None:
    root = on_mesh(1, 1) / kind
    with torch.no_grad():
        expected = models.load(root / "hf")(models.tokens()).logits
    without = load_file(root / "ablated.safetensors")[feature]
    # A hundred times the tolerance of the parity test.
    assert (without - expected).abs().max() > 1e-2
