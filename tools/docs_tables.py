"""Write the reference pages of the documentation from the code: configuration keys and metrics.

    python tools/docs_tables.py            # write docs/reference/keys.md and metrics.md
    python tools/docs_tables.py --check    # status 1 where a page is not what the code gives

Keys say type, range, default and help themselves, so the pages can be neither incomplete nor out of
date; `tests/test_docs.py` compares them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.config.base import CONTENT, FIXED, FREE, default_of, fields_of
from nemo_gdpo.config.evaluation import RewardConfig
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.config.help import describe_type, keys
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.rounds import ROUNDS, SCORE
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.evaluation.metrics.table import as_markdown
from nemo_gdpo.launch.verbs import VERBS

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
MADE = "<!-- Written by tools/docs_tables.py (make docs-tables); edits here are lost. -->"
KEYS_HEAD = f"""{MADE}
# Configuration keys

Every key that a verb reads, as `key=value` on the command line, with the default that holds where
no preset of `conf/` says otherwise: `nemo-gdpo VERB ... --cfg job --resolve` prints what a run
reads. Lists are written `[a,b]`; `N` in a key is a place in a list.

"On resume" says what becomes of a training key that has another value when a run in the same
`output_dir` is started again: it may change, and takes effect; it may not, and the start is refused
with both values; or only what it makes of the model or the data counts (weights, tokens), which may
not change.
"""
ON_RESUME = {FREE: "may change", FIXED: "may not", CONTENT: "by content"}
METRICS_HEAD = f"""{MADE}
# Metrics of an evaluation

What `nemo-gdpo evaluate` can measure; the settings decide what is measured. Definitions and traps
are in [Evaluation](../evaluation.md).
"""


SHARED: dict[str, tuple[Root[Any], ...]] = {
    ROUNDS.name: (TRAIN, GENERATE),
    SCORE.name: (GENERATE,),
}
"""Name of a configuration -> those whose tables have some of its keys, which its own does not
repeat."""
NOTES = {
    ROUNDS.name: "All keys of `train`, with `generation.*` and `constraints.*` of `generate`, are "
    "as there but for these, and there are these beside them:",
    SCORE.name: "All keys `constraints.*` are as those of `generate`, and beside them there are:",
}
"""What is said of that."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [head, ("---",) * len(head), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def titles() -> dict[str, str]:
    """Where a configuration is declared -> the commands that read it."""
    found: dict[str, list[str]] = {}
    for verb in VERBS:
        for name, one in (
            (verb.name, verb),
            *((f"{verb.name} {f.name}", f) for f in verb.followers),
        ):
            if one.reads is not None:
                found.setdefault(one.reads, []).append(name)
    return {reads: f"nemo-gdpo {', '.join(names)}" for reads, names in found.items()}


def reward_rows() -> Iterator[tuple[str, ...]]:
    """Keys of an element of `evaluation.rewards`."""
    for name, field in fields_of(RewardConfig).items():
        default = "" if field.is_required() else f"`{json.dumps(default_of(field))}`"
        kind = describe_type(field.annotation, field.metadata)
        yield f"`evaluation.rewards.N.{name}`", kind, default, field.description or ""


def keys_page() -> str:
    """`docs/reference/keys.md`."""
    sections = [KEYS_HEAD]
    roots = {one.reads: one.root() for verb in VERBS for one in (verb, *verb.followers)}
    for reads, title in titles().items():
        root = roots[reads]
        assert root is not None
        rows: list[tuple[str, ...]] = []
        others = SHARED.get(root.name, ())
        told = {(key.name, key.default, key.help) for one in others for key in keys(one)}
        for key in keys(root):
            if (key.name, key.default, key.help) in told:
                continue
            owners = f" ({', '.join(key.owners)})" if key.owners else ""
            row = [f"`{key.name}`{owners}", key.kind, f"`{key.default}`", key.help]
            if root is TRAIN:
                assert key.on_resume is not None
                row.insert(3, ON_RESUME[key.on_resume])
            rows.append(tuple(row))
            if key.name == "evaluation.rewards":
                rows += reward_rows()
        head = ["key", "type", "default", *(["on resume"] if root is TRAIN else []), "meaning"]
        note = f"{NOTES[root.name]}\n\n" if others else ""
        sections.append(f"## {title}\n\n{note}{table(head, rows)}")
    return "\n".join(sections)


def metrics_page() -> str:
    """`docs/reference/metrics.md`."""
    return f"{METRICS_HEAD}\n{as_markdown()}"


def pages() -> dict[Path, str]:
    """File -> what it has to hold."""
    return {REFERENCE / "keys.md": keys_page(), REFERENCE / "metrics.md": metrics_page()}


def main(arguments: list[str]) -> int:
    """Write the pages, or say which are out of date; returns the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: docs_tables.py [--check]", file=sys.stderr)
        return 2
    made = pages()
    stale = [p for p, text in made.items() if not p.is_file() or p.read_text("utf-8") != text]
    for path in stale:
        if arguments:
            print(f"{path}: is not what the code gives; run make docs-tables", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], "utf-8")
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
