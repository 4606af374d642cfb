"""`nemo-gdpo convert`: between Hugging Face, Megatron and `.nemo`; verify; the cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_gdpo.config.model_files import ADAPTER_RECORD, is_megatron_checkpoint
from nemo_gdpo.config.objective import OBJECTIVE_SECTIONS
from nemo_gdpo.config.places import checkpoint_place, model_place
from nemo_gdpo.conversion import cache
from nemo_gdpo.conversion.compare.compare import TOLERANCE, compare
from nemo_gdpo.conversion.compare.logits import MegatronLogits
from nemo_gdpo.conversion.convert import (
    VOCAB_DIVISIBLE_BY,
    convert_hf_to_megatron,
    convert_megatron_to_hf,
)
from nemo_gdpo.conversion.formats.adapter_checkpoint import holds_adapter
from nemo_gdpo.conversion.formats.megatron_io import CheckpointModel
from nemo_gdpo.conversion.formats.nemo_archive import target_of
from nemo_gdpo.conversion.merge import export_merged, export_peft
from nemo_gdpo.conversion.nemo1.nemo_import import convert_nemo_to_megatron
from nemo_gdpo.conversion.own_archive import SUFFIX, convert_megatron_to_nemo
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, RunError, UserError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def _path(text: str) -> Path:
    """A path; a shell leaves `--report=~/x` as it is."""
    return Path(text).expanduser()


def _model(text: str) -> Path:
    """A model: a directory or a file, a run's directory or its `latest`, a name of the hub."""
    path = _path(text)
    return checkpoint_place(path) if path.exists() else Path(model_place(text))


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=_path, help="directory for report.md and report.json")
    parser.add_argument("--prompts", type=_path, help="text file, one prompt a line")
    parser.add_argument(
        "--tolerance", type=_positive, default=TOLERANCE,
        help=f"largest difference of a logit that passes (default {TOLERANCE:g})",
    )  # fmt: skip


def _add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    to_megatron = verbs.add_parser("hf-to-megatron", help="Hugging Face -> Megatron checkpoint")
    from_nemo = verbs.add_parser(
        "nemo-to-megatron",
        help=".nemo of this program, or of NeMo 1 or NeMo-Aligner (Llama, Gemma) -> Megatron",
    )
    to_hf = verbs.add_parser("megatron-to-hf", help="Megatron checkpoint -> Hugging Face")
    for verb in (to_megatron, from_nemo, to_hf):
        verb.add_argument("source", type=_model)
        verb.add_argument("destination", type=_path, help="absent, empty, or an earlier conversion")
        verb.add_argument("--dtype", choices=_DTYPES, help="cast the weights (default: keep)")
    for verb in (to_megatron, from_nemo):
        verb.add_argument(
            "--make-vocab-size-divisible-by", type=_positive_int, default=VOCAB_DIVISIBLE_BY
        )
    to_megatron.add_argument(
        "--verify", action="store_true", help="then compare tensors and logits with the source"
    )
    _add_comparison(to_megatron)
    from_nemo.add_argument(
        "--tokenizer", type=_path,
        help="Hugging Face directory with the model's tokenizer; for NeMo's own archives",
    )  # fmt: skip
    from_nemo.add_argument(
        "--vocab-size", type=_positive_int, help="without padding; for NeMo's own archives"
    )
    from_nemo.add_argument(
        "--ignore-field", action="append", default=[], metavar="NAME",
        help="a field of model_config.yaml that is not known and changes nothing",
    )  # fmt: skip
    to_hf.add_argument(
        "--base", type=_model,
        help="the model that an adapter was trained on, where the checkpoint holds an adapter "
        "alone; both are merged",
    )  # fmt: skip
    to_hf.add_argument("--max-shard-gb", type=_positive, default=5.0, help="10^9 bytes a shard")
    _add_megatron_to_nemo(verbs)
    to_peft = verbs.add_parser("megatron-to-peft", help="checkpoint of an adapter -> PEFT's format")
    to_peft.add_argument("source", type=_model, help="checkpoints/step_N of a run with lora.rank")
    to_peft.add_argument("destination", type=_path, help="absent, empty, or an earlier export")
    to_peft.add_argument("--base", help="name or path that PEFT is to load the base by")
    check = verbs.add_parser("verify", help="compare tensors and logits of two checkpoints")
    check.add_argument("first", type=_model)
    check.add_argument("second", type=_model)
    check.add_argument("--tensors-only", action="store_true", help="run no model")
    _add_comparison(check)
    cached = verbs.add_parser("cache", help="list or empty the cache of converted models")
    cached.add_argument("--remove", metavar="NAME", help="an entry of the list, or all")


def _add_megatron_to_nemo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    to_nemo = verbs.add_parser("megatron-to-nemo", help="Megatron checkpoint -> .nemo archive")
    to_nemo.add_argument("source", type=_model, help="a conversion, or checkpoints/step_N of a run")
    to_nemo.add_argument("destination", type=_path, metavar="FILE.nemo")
    to_nemo.add_argument(
        "--objective", choices=sorted(OBJECTIVE_SECTIONS),
        help="what the archive's class trains, where the checkpoint is not a run's",
    )  # fmt: skip
    to_nemo.add_argument(
        "--end-token-id", type=int, metavar="N",
        help="the token that responses end in, where the checkpoint is not a run's and the model "
        "stops on several",
    )  # fmt: skip
    to_nemo.add_argument("--force", action="store_true", help="replace an archive that is there")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nemo-gdpo convert",
        description=__doc__,
        epilog="exit status: 0 done, or the same; 1 verify found a difference; 2 bad input",
    )
    _add_verbs(parser.add_subparsers(dest="verb", required=True))
    return parser


def _verify(
    args: argparse.Namespace,
    first: Path,
    second: Path,
    megatron_logits: MegatronLogits | None,
    *,
    tensors_only: bool,
) -> int:
    found = compare(
        first,
        second,
        megatron_logits=megatron_logits,
        tensors_only=tensors_only,
        prompts_file=args.prompts,
        tolerance=args.tolerance,
        progress=True,
    )
    print("\n".join(found.lines()))
    if args.report is not None:
        found.write(args.report)
        print(f"report: {args.report}")
    return EXIT_DONE if found.same else EXIT_FAILED


def _wrote(destination: Path, model: CheckpointModel) -> None:
    print(
        f"wrote {destination}: {model.config.family}, {model.config.num_layers} layers, "
        f"vocabulary {model.config.vocab_size} padded to {model.padded_vocab_size}"
    )


def _hf_to_megatron(
    args: argparse.Namespace, dtype: torch.dtype | None, megatron_logits: MegatronLogits | None
) -> int:
    if is_megatron_checkpoint(args.source):
        raise UserError(f"{args.source} is a Megatron checkpoint already; use megatron-to-hf")
    if args.source.suffix == SUFFIX and args.source.is_file():
        raise UserError(f"{args.source} is a NeMo archive; use nemo-to-megatron")
    if not args.verify and (args.report is not None or args.prompts is not None):
        raise UserError("--report and --prompts belong to a comparison; add --verify")
    if args.verify and dtype is not None:
        raise UserError("--verify compares bit for bit, which --dtype changes; leave one out")
    model = convert_hf_to_megatron(
        args.source,
        args.destination,
        vocab_divisible_by=args.make_vocab_size_divisible_by,
        dtype=dtype,
        progress=True,
    )
    _wrote(args.destination, model)
    if not args.verify:
        return EXIT_DONE
    return _verify(args, args.source, args.destination, megatron_logits, tensors_only=False)


def _megatron_to_hf(args: argparse.Namespace, dtype: torch.dtype | None) -> int:
    if not is_megatron_checkpoint(args.source):
        raise UserError(
            f"{args.source} is not a Megatron checkpoint (no model_config.json); give a directory "
            "that a conversion or a training run wrote"
        )
    shard = int(args.max_shard_gb * 1e9)
    if args.base is None:
        convert_megatron_to_hf(
            args.source, args.destination, dtype=dtype, max_shard_bytes=shard, progress=True
        )
    elif holds_adapter(args.source):
        export_merged(
            args.source, args.base, args.destination,
            dtype=dtype, max_shard_bytes=shard, progress=True,
        )  # fmt: skip
    else:
        raise UserError(f"--base: {args.source} holds a whole model, and no adapter; leave it out")
    print(f"wrote {args.destination}")
    return EXIT_DONE


def _megatron_to_peft(args: argparse.Namespace) -> int:
    if not holds_adapter(args.source):
        raise UserError(
            f"{args.source} holds no adapter (no {ADAPTER_RECORD}); give a checkpoint of a run "
            "with lora.rank"
        )
    export_peft(args.source, args.destination, base=args.base)
    print(f"wrote {args.destination}")
    return EXIT_DONE


def _nemo_to_megatron(args: argparse.Namespace, dtype: torch.dtype | None) -> int:
    model = convert_nemo_to_megatron(
        args.source,
        args.destination,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        ignored_fields=frozenset(args.ignore_field),
        vocab_divisible_by=args.make_vocab_size_divisible_by,
        dtype=dtype,
        progress=True,
    )
    _wrote(args.destination, model)
    return EXIT_DONE


def _megatron_to_nemo(args: argparse.Namespace) -> int:
    run = convert_megatron_to_nemo(
        args.source,
        args.destination,
        objective=args.objective,
        end_token_id=args.end_token_id,
        force=args.force,
        progress=True,
    )
    if run.note is not None:
        print(run.note)
    name = target_of(run.config.objective.name).rpartition(".")[2]
    print(f"wrote {args.destination}: {name}, end token {run.end_token_id}")
    return EXIT_DONE


def _cache(remove: str | None) -> int:
    root = cache.cache_root()
    if remove is not None:
        removed = cache.remove(remove)
        print(f"removed {', '.join(removed) if removed else 'nothing'} from {root}")
        return EXIT_DONE
    entries = cache.entries()
    for entry in entries:
        print(f"{entry.bytes / 2**30:9.2f} GiB  last used {entry.last_used:%Y-%m-%d}  {entry.name}")
    total = sum(entry.bytes for entry in entries)
    print(f"{total / 2**30:9.2f} GiB  in {root}")
    return EXIT_DONE


def _run(args: argparse.Namespace, megatron_logits: MegatronLogits | None) -> int:
    if args.verb == "verify":
        return _verify(
            args, args.first, args.second, megatron_logits, tensors_only=args.tensors_only
        )
    if args.verb == "cache":
        return _cache(args.remove)
    if args.verb == "megatron-to-nemo":
        return _megatron_to_nemo(args)
    if args.verb == "megatron-to-peft":
        return _megatron_to_peft(args)
    dtype = None if args.dtype is None else _DTYPES[args.dtype]
    if args.verb == "hf-to-megatron":
        return _hf_to_megatron(args, dtype, megatron_logits)
    if args.verb == "nemo-to-megatron":
        return _nemo_to_megatron(args, dtype)
    return _megatron_to_hf(args, dtype)


def main(
    argv: Sequence[str] | None = None, *, megatron_logits: MegatronLogits | None = None
) -> int:
    """Run one verb; returns the exit status (see `nemo_gdpo.errors`).

    Args:
        argv: without the program's name.
        megatron_logits: runs a Megatron checkpoint; `nemo_gdpo.cli` hands it in.
    """
    try:
        return _run(_parser().parse_args(argv), megatron_logits)
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
