"""The head on one device: time, memory and error of log-probs and gradients.

    python -m benchmarks.head                                 8,192 tokens x 4,096 x 131,072, a GPU
    python -m benchmarks.head --device cpu --tokens 64 --hidden 64 --vocabulary 1000
    python -m benchmarks.head --tile-logits 24 25 26 27       to choose a size of tiles by

Prints a table. `RESULTS.md` has what it gave, and where.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nemo_gdpo.logprobs.measure import HeadMeasurement, measure_head

# H100, 8,192 x 4,096 x 131,072, bfloat16, forward and backward, one column.
ANCHORS = (
    "| best published kernel | 1 | returned | | | 50.4 | 1.3 | | | | | |",
    "| chunked torch | 1 | returned | | | 129 | | | | | | |",
    "| goal | 2 | returned | | | 55 | 1.4 | | | | | |",
)
HEADING = (
    "| device | columns | weight gradient | forward, ms | backward, ms | both, ms | GiB | TFLOP/s "
    "| label, nats | EOS, nats | hidden gradient | weight gradient |"
)


def row(found: HeadMeasurement) -> str:
    """A line of the table; errors of gradients relative to their norm."""
    memory = "" if found.peak_bytes is None else f"{found.peak_bytes / 2**30:.2f}"
    eos = "" if found.eos_error is None else f"{found.eos_error:.1e}"
    cells = [
        found.device,
        str(found.columns),
        "main gradient" if found.into_main_grad else "returned",
        f"{found.forward_ms:.1f}",
        f"{found.backward_ms:.1f}",
        f"{found.total_ms:.1f}",
        memory,
        f"{found.tflops:.2f}",
        f"{found.label_error:.1e}",
        eos,
        f"{found.hidden_error:.1e}",
        f"{found.weight_error:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


@contextmanager
def tile_logits(power: int | None) -> Iterator[None]:
    """Tiles of 2^power logits; None leaves the size as it is."""
    if power is None:
        yield
        return
    from nemo_gdpo.logprobs import tiles

    before = tiles.TILE_LOGITS
    tiles.TILE_LOGITS = 2**power
    try:
        yield
    finally:
        tiles.TILE_LOGITS = before


def main() -> None:
    """Measure one and two columns, gradient returned and added to a main gradient."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--tokens", default=8192, type=int)
    parser.add_argument("--hidden", default=4096, type=int)
    parser.add_argument("--vocabulary", default=131072, type=int)
    parser.add_argument("--repeats", default=10, type=int)
    parser.add_argument("--tile-logits", default=[None], type=int, nargs="+", metavar="POWER")
    given = parser.parse_args()
    print(f"torch {torch.__version__}; {given.tokens} x {given.hidden} x {given.vocabulary}\n")
    print(HEADING, "|---" * (HEADING.count("|") - 1) + "|", *ANCHORS, sep="\n")
    for power in given.tile_logits:
        if power is not None:
            print(f"tiles of 2^{power} logits")
        for columns in (1, 2):
            for into_main_grad in (False, True):
                with tile_logits(power):
                    found = measure_head(
                        given.device,
                        given.tokens,
                        given.hidden,
                        given.vocabulary,
                        columns,
                        into_main_grad=into_main_grad,
                        repeats=given.repeats,
                    )
                print(row(found), flush=True)


if __name__ == "__main__":
    main()
