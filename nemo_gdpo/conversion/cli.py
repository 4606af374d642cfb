"""`nemo-gdpo convert`: hf-to-megatron, megatron-to-hf, verify."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_gdpo.conversion.convert import (
    VOCAB_DIVISIBLE_BY,
    convert_hf_to_megatron,
    convert_megatron_to_hf,
)
from nemo_gdpo.conversion.megatron_io import is_megatron_checkpoint
from nemo_gdpo.conversion.verify import VerifyReport, verify
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR, UserError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SHOWN = 10


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-gdpo convert", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    to_megatron = verbs.add_parser("hf-to-megatron", help="Hugging Face -> Megatron checkpoint")
    to_hf = verbs.add_parser("megatron-to-hf", help="Megatron checkpoint -> Hugging Face")
    check = verbs.add_parser("verify", help="compare two checkpoints tensor by tensor")
    for verb in (to_megatron, to_hf):
        verb.add_argument("source", type=Path)
        verb.add_argument("destination", type=Path, help="absent, empty, or an earlier conversion")
        verb.add_argument("--dtype", choices=_DTYPES, help="cast the weights (default: keep)")
    to_megatron.add_argument(
        "--make-vocab-size-divisible-by", type=_positive_int, default=VOCAB_DIVISIBLE_BY
    )
    to_hf.add_argument("--max-shard-gb", type=_positive, default=5.0, help="10^9 bytes a shard")
    check.add_argument("first", type=Path)
    check.add_argument("second", type=Path)
    check.add_argument("--report", type=Path, help="write what was found as JSON")
    return parser


def _verify(first: Path, second: Path, report: Path | None, progress: bool) -> int:
    found: VerifyReport = verify(first, second, progress=progress)
    if report is not None:
        report.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    for line in found.config_differences:
        print(f"architecture differs: {line}")
    for d in found.differences[:_SHOWN]:
        largest = "" if d.max_abs_difference is None else f", up to {d.max_abs_difference:.3g}"
        print(f"{d.name} differs: {d.reason}{largest}")
    if len(found.differences) > _SHOWN:
        print(f"and {len(found.differences) - _SHOWN} more")
    if found.same:
        print(f"same: {found.tensors} tensors, bit for bit")
    return EXIT_DONE if found.same else EXIT_FAILED


def _run(args: argparse.Namespace) -> int:
    progress = sys.stderr.isatty()
    if args.verb == "verify":
        return _verify(args.first, args.second, args.report, progress)
    dtype = None if args.dtype is None else _DTYPES[args.dtype]
    if args.verb == "hf-to-megatron":
        if is_megatron_checkpoint(args.source):
            raise UserError(f"{args.source} is a Megatron checkpoint already; use megatron-to-hf")
        model = convert_hf_to_megatron(
            args.source,
            args.destination,
            vocab_divisible_by=args.make_vocab_size_divisible_by,
            dtype=dtype,
            progress=progress,
        )
        print(
            f"wrote {args.destination}: {model.config.family}, {model.config.num_layers} layers, "
            f"vocabulary {model.config.vocab_size} padded to {model.padded_vocab_size}"
        )
        return EXIT_DONE
    if not is_megatron_checkpoint(args.source):
        raise UserError(
            f"{args.source} is no Megatron checkpoint (no model_config.json); give a directory "
            "that a conversion or a training run wrote"
        )
    convert_megatron_to_hf(
        args.source,
        args.destination,
        dtype=dtype,
        max_shard_bytes=int(args.max_shard_gb * 1e9),
        progress=progress,
    )
    print(f"wrote {args.destination}")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (see `nemo_gdpo.errors`)."""
    try:
        return _run(_parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
