"""`nemo-gdpo pairs`: check, pair, write pairs.jsonl and stats.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from nemo_gdpo.config.pairs import PAIRS, PairRules, PairsConfig
from nemo_gdpo.config.problem import Problem, raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import EXIT_DONE
from nemo_gdpo.evaluation.local_models import local_models
from nemo_gdpo.io.files import write_output
from nemo_gdpo.io.output_lock import hold


def run(request: Request) -> int:
    """Make pairs as configured; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong; nothing is written.
        RunError: the disk failed.
    """
    config = request.parse(PAIRS)
    raise_problems(problems(config))
    with local_models():
        return _run(config)


def problems(config: PairsConfig) -> list[Problem]:
    """Problems that the settings alone show."""
    return list(_problems(config))


def _problems(config: PairsConfig) -> Iterator[Problem]:
    pairs = config.pairs
    if pairs.generations is None:
        yield Problem(
            "pairs.generations", "is not set", "set it to a directory of nemo-gdpo generate"
        )
    sources = {
        "scores_path": pairs.scores_path is not None,
        "score_column": pairs.score_column is not None,
        "rewards": bool(pairs.rewards),
    }
    if sum(sources.values()) != 1 or len(pairs.rewards) > 1:
        given = ", ".join(f"pairs.{name}" for name, there in sources.items() if there) or "nothing"
        many = " with several rewards" if len(pairs.rewards) > 1 else ""
        yield Problem(
            "pairs.rewards",
            f"scores come from one source, and {given}{many} gives them",
            "set exactly one of pairs.scores_path, pairs.score_column and pairs.rewards=[KIND]",
        )
    yield from unread_rules(pairs)
    if pairs.encoder != type(pairs)().encoder:
        yield from _unread(pairs, "encoder", ("divpo", "redipo"))


def unread_rules(pairs: PairRules) -> Iterator[Problem]:
    """Rules that the method does not read."""
    readers = {
        "min_gap": ("best_worst", "divpo"),
        "threshold": ("divpo", "redipo"),
        "share": ("divpo",),
        "rarity": ("divpo",),
        "similar": ("redipo",),
    }
    for name, methods in readers.items():
        if getattr(pairs, name) != getattr(PairRules(), name):
            yield from _unread(pairs, name, methods)
    if pairs.method == "divpo" and pairs.threshold is not None and pairs.share != PairRules().share:
        yield Problem(
            "pairs.share", "nothing reads it with a threshold", "set pairs.threshold=null"
        )


def _unread(pairs: PairRules, name: str, methods: tuple[str, ...]) -> Iterator[Problem]:
    if pairs.method not in methods:
        yield Problem(
            f"pairs.{name}",
            f"nothing reads it with pairs.method={pairs.method}",
            f"leave it out, or set pairs.method={methods[0]}",
        )


def _run(config: PairsConfig) -> int:
    from nemo_gdpo.io.arrays import Cache
    from nemo_gdpo.pairing.pairs import make_pairs

    output = Path(config.output_dir)
    with hold(output):
        with Cache(output / "cache" / "arrays.sqlite") as cache:
            found = make_pairs(config, cache)
        path = write_output(output / "pairs.jsonl", found.text())
        stats = found.stats()
        settings = config.model_dump(mode="json")
        written = json.dumps({**stats, "settings": settings}, indent=1) + "\n"
        write_output(output / "stats.json", written)
    print(f"pairs: {json.dumps(stats)}")
    print(f"pairs: {path}")
    return EXIT_DONE
