"""Write the preference pairs to train on: `python -m examples.film_reviews.prepare`.

DIR gets train.jsonl, validation.jsonl, prompts.jsonl and stats.json; `pairs.py` says how pairs are
made. A directory that was written with the same arguments is reused.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from examples.film_reviews.inputs import ROOT, rated_snippets, say
from examples.film_reviews.pairs import Pairing, write_atomically, write_pairs
from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR, UserError

DATA_DIR = ROOT / "runs" / "demo" / "data"
"""Directory in which `experiment=demo` looks for the pairs."""


def prepare(source: Path, directory: Path, pairing: Pairing) -> None:
    """Write the pairs into `directory`, unless the same ones are there.

    Args:
        source: the vaderSentiment source package (.tar.gz).

    Raises:
        UserError: see `write_pairs`.
    """
    wanted = {"source_path": source.name, **asdict(pairing)}
    request = directory / "request.json"
    if request.is_file() and json.loads(request.read_text()) == wanted:
        say(f"film reviews: reused {directory}")
        return
    stats = write_pairs(source, directory, pairing)
    write_atomically(request, json.dumps(wanted, indent=1) + "\n")
    say(f"film reviews: {json.dumps(stats)}")


def count_or_none(text: str) -> int | None:
    """Argument type; argparse names the function when it refuses a text."""
    return None if text == "none" else int(text)


def rating_or_none(text: str) -> float | None:
    """Argument type, as above."""
    return None if text == "none" else float(text)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; its defaults are the demo's pairs."""
    usual = Pairing()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output-dir", type=Path, default=DATA_DIR, metavar="DIR", help="default: runs/demo/data")
    add("--source", type=Path, help="vaderSentiment-3.3.2.tar.gz; default: download it")
    add("--seed", type=int, default=usual.seed, help="default: %(default)s")
    add(
        "--num-train",
        type=count_or_none,
        default=usual.num_train,
        metavar="N",
        help="training pairs; none: all there are; default: %(default)s",
    )
    add(
        "--num-validation",
        type=count_or_none,
        default=usual.num_validation,
        metavar="N",
        help="validation pairs; none: all there are; default: %(default)s",
    )
    add(
        "--validation-fraction",
        type=float,
        default=usual.validation_fraction,
        metavar="SHARE",
        help="share of the snippets that only validation sees; default: %(default)s",
    )
    add(
        "--chosen-min",
        type=rating_or_none,
        default=usual.chosen_min,
        metavar="RATING",
        help="least mean rating of a chosen snippet, -4 to 4, or none; default: %(default)s",
    )
    add(
        "--rejected-max",
        type=rating_or_none,
        default=usual.rejected_max,
        metavar="RATING",
        help="greatest mean rating of a rejected snippet, -4 to 4, or none; default: %(default)s",
    )
    add(
        "--min-gap",
        type=float,
        default=usual.min_gap,
        metavar="GAP",
        help="least difference of the two mean ratings; default: %(default)s",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the pairs; returns the exit status."""
    options = vars(arguments(argv))
    source, directory = options.pop("source"), options.pop("output_dir")
    try:
        pairing = Pairing(**options)
        prepare(source or rated_snippets(), directory.absolute(), pairing)
    except UserError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
