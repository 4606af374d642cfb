"""Write the reference pages of the documentation from the code: configuration keys and metrics.

    python tools/docs_tables.py            # write docs/reference/keys.md and metrics.md
    python tools/docs_tables.py --check    # status 1 where a page is not what the code gives

The settings say key, type, default, range and help themselves, so the pages can be neither
incomplete nor out of date; `tests/test_docs.py` compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nemo_gdpo.config import TRAIN, Root
from nemo_gdpo.config.base import Section
from nemo_gdpo.config.downstream import ALPACA_EVAL, LM_EVAL, MT_BENCH
from nemo_gdpo.config.evaluation import (
    EVALUATE,
    EvaluationConfig,
    NoveltyConfig,
    RewardConfig,
)
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.evaluation.catalog import describe_metrics

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
ROOTS: dict[str, Root[Any]] = {
    "nemo-gdpo train, validate, reference, prepare": TRAIN,
    "nemo-gdpo generate": GENERATE,
    "nemo-gdpo evaluate": EVALUATE,
    "nemo-gdpo evaluate lm-eval": LM_EVAL,
    "nemo-gdpo evaluate alpaca-eval": ALPACA_EVAL,
    "nemo-gdpo evaluate mt-bench": MT_BENCH,
}
"""Title of a section of the page -> what those verbs read."""
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
EVERYTHING = EvaluationConfig(
    reference_model="DIR",
    rewards=(RewardConfig(kind="vader", name="NAME"),),
    novelty=NoveltyConfig(utility_reward="NAME"),
)
"""Settings under which no metric is left out."""
MADE = "<!-- Written by tools/docs_tables.py (make docs-tables); edits here are lost. -->"
KEYS_HEAD = f"""{MADE}
# Configuration keys

Every key that a verb reads, as `key=value` on the command line. A default is the one that holds
where no file of `conf/` says otherwise: `nemo-gdpo VERB ... --cfg job --resolve` prints what a run
reads. Lists are written `[a,b]`; `N` in a key is a place in a list.
"""
METRICS_HEAD = f"""{MADE}
# Metrics of an evaluation

What `nemo-gdpo evaluate` can measure; the settings decide what is measured. Definitions and traps
are in [Evaluation](../evaluation.md).
"""

Schema = Mapping[str, Any]


def table(head: tuple[str, ...], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [head, ("---",) * len(head), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def kind_of(schema: Schema) -> str:
    """A value's type in words, from its JSON schema."""
    for combined in ("anyOf", "oneOf"):
        if combined in schema:
            return " or ".join(kind_of(option) for option in schema[combined])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "section"
    kind = str(schema.get("type", "any"))
    if kind == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        return f"list of {kind_of(items)}"
    if kind == "object":
        return "mapping"
    return {"string": "text", "number": "real", "boolean": "true or false"}.get(kind, kind)


def bounds_of(schema: Schema) -> str:
    """The range that a number, or each number of a list, has to lie in."""
    found = [f"{sign} {schema[name]:g}" for name, sign in BOUNDS.items() if name in schema]
    inner = [*schema.get("anyOf", []), schema.get("items"), *schema.get("prefixItems", [])[:1]]
    found += [bounds_of(option) for option in inner if option]
    return ", ".join(bound for bound in found if bound)


def shown(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(shown(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def key_rows(section: type[Section], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """(key, type, default, range, help) of every leaf below a section, in the order of the code."""
    properties = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from key_rows(kind, f"{key}.")
            continue
        schema = properties[name]
        default = ""
        if not field.is_required():
            default = f"`{shown(field.get_default(call_default_factory=True))}`"
        yield f"`{key}`", kind_of(schema), default, bounds_of(schema), field.description or ""


def keys_of(root: Root[Any]) -> Iterator[tuple[str, ...]]:
    """All keys of a verb: its own, those of each section to choose from, those of list elements."""
    for row in key_rows(root.schema):
        if row[0] != f"`{root.choice}`":
            yield row
        for name, section in root.sections.items() if row[0] == f"`{root.choice}`" else ():
            for key, *rest in key_rows(section, f"{root.choice}."):
                yield f"{key} ({name})", *rest
        if row[0] == "`evaluation.rewards`":
            yield from key_rows(RewardConfig, "evaluation.rewards.N.")


def keys_page() -> str:
    """`docs/reference/keys.md`."""
    head = ("key", "type", "default", "range", "meaning")
    sections = [f"## {title}\n\n{table(head, keys_of(r))}" for title, r in ROOTS.items()]
    return "\n".join([KEYS_HEAD, *sections])


def metrics_page() -> str:
    """`docs/reference/metrics.md`."""
    rows = [
        (f"`{name}`", info.kind, info.direction, info.unit, info.description)
        for name, info in describe_metrics(EVERYTHING).items()
    ]
    head = ("metric", "kind", "better", "unit", "meaning")
    return f"{METRICS_HEAD}\n{table(head, rows)}"


def pages() -> dict[Path, str]:
    """File -> what it has to hold."""
    return {REFERENCE / "keys.md": keys_page(), REFERENCE / "metrics.md": metrics_page()}


def main(arguments: list[str]) -> int:
    """Write the pages, or say which are out of date; returns the exit status."""
    made = pages()
    stale = [p for p, text in made.items() if not p.is_file() or p.read_text("utf-8") != text]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path}: is not what the code gives; run make docs-tables", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print("usage: docs_tables.py [--check]", file=sys.stderr)
        return 2
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
