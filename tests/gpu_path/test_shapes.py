"""What the project asks of shapes and recipes, against what Transformer Engine takes."""

from __future__ import annotations

import pytest

from nemo_gdpo.config.shapes import fp8_multiples
from tests.gpu_path.launch import Found
from tests.gpu_path.probes import SIZES

FP8 = ("fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8")


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("precision", FP8)
@pytest.mark.parametrize("dimension", ["tokens", "hidden", "features"])
def test_the_multiples_are_those_that_the_layers_take(
    precision: str, split: bool, dimension: str, rehearsed: Found
) -> None:
    accepted = rehearsed["multiples"][0][f"{precision} {'split' if split else 'whole'}"][dimension]
    multiples = fp8_multiples(precision, sequence_parallel=split)
    wanted = {
        "tokens": multiples.tokens,
        "hidden": multiples.hidden,
        "features": multiples.features,
    }
    fitting = [size for size in SIZES if size % wanted[dimension] == 0]
    assert set(fitting) <= set(accepted)
    if (precision, dimension, split) == ("fp8_tensorwise", "tokens", True):
        # Gathered over two ranks, half of it would do; how many ranks there are is not asked.
        assert min(accepted) == wanted[dimension] // 2
    else:
        assert accepted == fitting


def test_delayed_scaling_has_no_reference(rehearsed: Found) -> None:
    """Why it is refused: what was cached before training was quantised by other scales."""
    found = rehearsed["own reference"][0]
    assert found["current"]["gap"] == 0.0
    assert found["current"]["error"] == pytest.approx(0.037, abs=0.01)
    # At scale 1, values of 1e-3 are below FP8's smallest step, 2**-9.
    assert found["delayed"]["error"] > 0.3
    assert found["delayed"]["gap"] > 0.3
