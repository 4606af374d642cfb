"""A configuration with changes, and what is said about it."""

from __future__ import annotations

from typing import Any

from nemo_gdpo.config.validate import problems_of_mapping
from nemo_gdpo.config.world import Hardware

LLAMA = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}


def mapping_of(base: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """`base` with changes: model__tp=2 is model.tp; a dictionary replaces a whole section."""
    merged = {name: dict(values) for name, values in base.items()}
    top = merged.pop("top")
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            merged.setdefault(section, {})[leaf] = value
        else:
            top[key] = value
    return {**merged, **top}


def found_in(
    base: dict[str, dict[str, Any]], world: Hardware | None = None, **changes: Any
) -> list[str]:
    """What is said, a fault of the schema and of settings that exclude each other among it."""
    _, found = problems_of_mapping(mapping_of(base, **changes), world)
    return [str(problem) for problem in found]
