"""Layers against layers: GPU against CPU in fp32, Transformer Engine against local, packed rows."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_gdpo.gpu_check.findings import Measurement, at_most
from nemo_gdpo.gpu_check.probe import FAMILIES, write_model, write_pairs
from nemo_gdpo.gpu_check.watched import COMPARED, Watched, probe_config, require_precision, train

EXPECTED = "expected_fp32.json"
"""Trajectory of a CPU, beside this file; `python -m nemo_gdpo.gpu_check.layers` writes it."""
FP32 = ("precision=fp32", "model.layers=local")
BF16_LOCAL = ("precision=bf16", "model.layers=local")
BF16_TE = ("precision=bf16", "model.layers=transformer_engine")
PACKED = ("data.packing=true",)
PACK_TOKENS = 256
"""Of a row: one to three of the probe's pairs, of up to 128 tokens each."""


def expected() -> list[dict[str, float]]:
    """Steps of the CPU's trajectory."""
    file = importlib.resources.files("nemo_gdpo.gpu_check") / EXPECTED
    steps: list[dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    return steps


def fp32_trajectory(folder: Path) -> list[dict[str, Any]]:
    """Four updates of the small Llama in fp32 on the local layers."""
    model, pairs = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")
    return train(probe_config(model, pairs, folder / "run", *FP32)).steps


def against_cpu(folder: Path) -> Iterator[Measurement]:
    """The same training as on a CPU, to fp32's rounding."""
    steps = fp32_trajectory(folder)
    for name in COMPARED:
        gap = max(
            abs(ours[name] - theirs[name]) / abs(theirs[name])
            for ours, theirs in zip(steps, expected(), strict=True)
        )
        # Sums in another order, over four updates; TF32 would be 1e-3 and more.
        yield at_most(f"relative gap of {name}", gap, 1e-4)


def bf16_allowance(exact: Watched, rounded: Watched) -> float:
    """Nats that another bf16 computation may be off by: twice what one is known to be off."""
    return 2 * rounded.logp_gap(exact) + 0.05


def transformer_engine(folder: Path) -> Iterator[Measurement]:
    """Each family's log-probs with both kinds of layers in bf16, and packed, judged by fp32's."""
    require_precision("bf16")
    pairs = write_pairs(folder / "pairs.jsonl")
    for family in FAMILIES:
        model = write_model(folder / family / "model", family)
        runs = {
            name: train(probe_config(model, pairs, folder / family / name, *settings))
            for name, settings in (
                ("fp32", FP32),
                ("local", BF16_LOCAL),
                ("te", BF16_TE),
                ("packed", (*BF16_TE, *PACKED)),
            )
        }
        allowed = bf16_allowance(runs["fp32"], runs["local"])
        gap = runs["te"].logp_gap(runs["fp32"])
        yield at_most(f"{family} log p to fp32", gap, allowed, "nats")
        yield Measurement(
            f"{family} local log p to fp32", runs["local"].logp_gap(runs["fp32"]), "nats"
        )
        yield at_most(f"{family} step 0", runs["te"].step0_gap(), 0.05, "nats")
        yield at_most(f"{family} trajectory", runs["te"].drift(runs["local"]), 0.1)
        # Windows, soft-caps and sequences of unequal length are kernels of their own.
        gap = runs["packed"].logp_gap(runs["fp32"])
        yield at_most(f"{family} packed log p to fp32", gap, allowed, "nats")
        yield at_most(f"{family} packed trajectory", runs["packed"].drift(runs["te"]), 0.1)


def packing(folder: Path) -> Iterator[Measurement]:
    """Rows packed by pairs and by tokens against padded rows, in this machine's best layers."""
    yield from rows_against_padded(
        folder,
        {
            "packed": PACKED,
            "packed by tokens": (*PACKED, f"data.pack_tokens={PACK_TOKENS}"),
        },
    )


def sharing(folder: Path) -> Iterator[Measurement]:
    """Rows that hold a prompt once against padded rows."""
    shared = (*PACKED, f"data.pack_tokens={PACK_TOKENS}", "data.prefix_sharing=true")
    yield from rows_against_padded(folder, {"shared": shared})


def rows_against_padded(
    folder: Path, modes: Mapping[str, tuple[str, ...]]
) -> Iterator[Measurement]:
    """Log-probs judged by fp32's as padded rows in bf16 are, and the trajectory by theirs."""
    require_precision("bf16")
    model, pairs = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")
    exact = train(probe_config(model, pairs, folder / "fp32", *FP32))
    padded = train(probe_config(model, pairs, folder / "padded", *BF16_TE))
    allowed = bf16_allowance(exact, padded)
    for name, settings in modes.items():
        output = folder / name.replace(" ", "_")
        found = train(probe_config(model, pairs, output, *BF16_TE, *settings))
        yield at_most(f"{name}: log p to fp32", found.logp_gap(exact), allowed, "nats")
        yield at_most(f"{name}: trajectory to padded", found.drift(padded), 0.1)


def references(folder: Path) -> Iterator[Measurement]:
    """The reference's strategies in one trajectory: from a file, a second model, host memory."""
    require_precision("bf16")
    model, pairs = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")
    runs = {
        kind: train(probe_config(model, pairs, folder / kind, *BF16_TE, f"reference={kind}"))
        for kind in ("cache", "resident", "swap")
    }
    for kind in ("resident", "swap"):
        yield at_most(f"{kind}: step 0, policy to reference", runs[kind].step0_gap(), 0.3, "nats")
        yield at_most(f"{kind}: trajectory to cache", runs[kind].drift(runs["cache"]), 0.02)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        kept = [{name: step[name] for name in COMPARED} for step in fp32_trajectory(Path(scratch))]
    target = Path(__file__).with_name(EXPECTED)
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
