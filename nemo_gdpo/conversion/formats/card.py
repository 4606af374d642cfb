"""The model card of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError

FACTS = "card_facts.json"
"""Beside a Megatron checkpoint: what is known for the card of its export."""

SECTIONS = {
    "base_model": "Base model",
    "licence": "Licence of the base model",
    "data": "Training data",
    "objective": "Objective",
    "precision": "Precision",
    "layout": "Parallel layout",
    "versions": "Software",
    "metrics": "Metrics",
    "citations": "Citations",
}
"""The facts that a card states, in order, and their headings."""


def write_facts(directory: Path, facts: Mapping[str, Any]) -> None:
    """Keep facts beside a checkpoint, for whoever exports it.

    Args:
        directory: of the checkpoint.
        facts: any of `SECTIONS`, as plain JSON.
    """
    (directory / FACTS).write_text(json.dumps(dict(facts), indent=1) + "\n")


def read_facts(directory: Path) -> dict[str, Any]:
    """What `write_facts` kept; empty where there is nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / FACTS
    if not path.is_file():
        return {}
    facts = read_json_object(path)
    unknown = sorted(facts.keys() - SECTIONS.keys())
    if unknown:
        raise UserError(f"{path}: unknown facts {', '.join(unknown)}; restore or remove the file")
    return facts


def _lines(value: Any) -> list[str]:
    match value:
        case None:
            return ["not recorded"]
        case Mapping():
            return [f"- {key}: {_inline(item)}" for key, item in value.items()]
        case str():
            return [value]
        case Sequence():
            return [f"- {_inline(item)}" for item in value]
        case _:
            return [_inline(value)]


def _inline(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md of an export, with the header that the Hugging Face hub reads.

    Args:
        facts: any of `SECTIONS`; text, number, list or mapping each. What is not given is
            said to be not recorded.

    Raises:
        ValueError: a fact that no section states.
    """
    unknown = sorted(facts.keys() - SECTIONS.keys())
    if unknown:
        raise ValueError(f"facts without a section: {', '.join(unknown)}")
    # JSON strings are YAML strings.
    header = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if facts.get("licence") is not None:
        header.append(f"license: {json.dumps(str(facts['licence']))}")
    if facts.get("base_model") is not None:
        header.append(f"base_model: {json.dumps(str(facts['base_model']))}")
    tags = ["nemo_gdpo"]
    objective = facts.get("objective")
    if isinstance(objective, Mapping) and "name" in objective:
        tags.append(str(objective["name"]))
    header += [f"tags: {json.dumps(tags)}", "---", ""]
    body = ["# Model card", ""]
    for key, title in SECTIONS.items():
        body += [f"## {title}", "", *_lines(facts.get(key)), ""]
    return "\n".join(header + body)
