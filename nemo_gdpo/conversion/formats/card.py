"""The model card: kept beside a Megatron checkpoint, written as README.md of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError

MODEL_CARD = "model_card.json"
"""File of a Megatron checkpoint with what is known for the card of its export."""
FORMER_NAME = "card_facts.json"
"""Its name in earlier checkpoints, which is still read."""

SECTIONS = {
    "base_model": "Base model",
    "usage": "Usage",
    "licence": "Licence of the base model",
    "data": "Training data",
    "validation_data": "Validation data",
    "objective": "Objective",
    "training": "Training",
    "precision": "Precision",
    "layout": "Parallel layout",
    "versions": "Software",
    "metrics": "Metrics",
    "best_validation": "Best validation",
    "last_validation": "Last validation",
    "citations": "Citations",
}
"""Keys of a card's sections, in order, and their headings."""

OPTIONAL = frozenset({"usage", "validation_data", "best_validation", "last_validation"})
"""Sections that are left out where there is nothing to say; of others that is said."""
LICENCE_NOTE = "The base model's licence applies to these weights, too."
HUB_DATA = "hub_name"
"""Key of the data sections: name of a data set on the hub."""

_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
"""
_CHAT = """\
messages = [{"role": "user", "content": "What is a film worth seeing twice?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
"""
_PLAIN = """\
inputs = tokenizer("A film worth seeing twice is", return_tensors="pt")
"""
_SAMPLE = """\
outputs = model.generate(**inputs, max_new_tokens=64)
prompt_tokens = inputs["input_ids"].shape[1]
print(tokenizer.decode(outputs[0, prompt_tokens:], skip_special_tokens=True))
"""


def usage_of(*, chat: bool) -> str:
    """How to load an export with transformers, as Markdown.

    Args:
        chat: it has a chat template.
    """
    return f"```python\n{_LOAD}\n{_CHAT if chat else _PLAIN}{_SAMPLE}```"


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Keep a model card beside a checkpoint, for whoever exports it.

    Args:
        directory: directory of the checkpoint.
        card: any of `SECTIONS`, as plain JSON.
    """
    (directory / MODEL_CARD).write_text(json.dumps(dict(card), indent=1) + "\n")


def read_card(directory: Path) -> dict[str, Any]:
    """The card that `write_card` kept; empty without one.

    Raises:
        UserError: the file is damaged.
    """
    found = [directory / name for name in (MODEL_CARD, FORMER_NAME)]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        return {}
    card = read_json_object(path)
    unknown = sorted(card.keys() - SECTIONS.keys())
    if unknown:
        raise UserError(f"{path}: unknown sections {', '.join(unknown)}; restore or remove it")
    return card


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


def render_card(card: Mapping[str, Any]) -> str:
    """README.md of an export, with the header that the Hugging Face hub reads.

    Args:
        card: any of `SECTIONS`; text, number, list or mapping each. What is not given is said to
            be not recorded.

    Raises:
        ValueError: a key that no section has.
    """
    unknown = sorted(card.keys() - SECTIONS.keys())
    if unknown:
        raise ValueError(f"keys without a section: {', '.join(unknown)}")
    # JSON strings are YAML strings.
    header = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if card.get("licence") is not None:
        header.append(f"license: {json.dumps(str(card['licence']))}")
    if card.get("base_model") is not None:
        header.append(f"base_model: {json.dumps(str(card['base_model']))}")
    data = card.get("data")
    if isinstance(data, Mapping) and data.get(HUB_DATA) is not None:
        header.append(f"datasets: {json.dumps([str(data[HUB_DATA])])}")
    tags = ["nemo_gdpo"]
    objective = card.get("objective")
    if isinstance(objective, Mapping) and "name" in objective:
        tags.append(str(objective["name"]))
    header += [f"tags: {json.dumps(tags)}", "---", ""]
    body = ["# Model card", ""]
    for key, title in SECTIONS.items():
        if key in OPTIONAL and card.get(key) is None:
            continue
        note = ["", LICENCE_NOTE] if key == "licence" else []
        body += [f"## {title}", "", *_lines(card.get(key)), *note, ""]
    return "\n".join(header + body)
