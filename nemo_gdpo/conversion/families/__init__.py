"""Model families: a config reader and a name table each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.families.gemma import GEMMA, GEMMA2, GEMMA3_TEXT
from nemo_gdpo.conversion.families.llama import LLAMA
from nemo_gdpo.conversion.families.mistral import MISTRAL
from nemo_gdpo.conversion.families.qwen import QWEN2, QWEN3
from nemo_gdpo.conversion.families.table import Family
from nemo_gdpo.conversion.model_config import MegatronModelConfig, read_json_object
from nemo_gdpo.errors import UserError

__all__ = ["FAMILIES", "Family", "family_of", "read_hf_config"]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3_TEXT)
}
_INSTEAD = {
    "gemma3": "it is the multimodal model; save its language model as gemma3_text",
}
"""Close relatives of supported types -> what to do."""


def family_of(config: MegatronModelConfig) -> Family:
    """The family of an architecture.

    Raises:
        UserError: it is not one of `FAMILIES`.
    """
    if config.family not in FAMILIES:
        raise UserError(f"model family {config.family} is not known; known: {', '.join(FAMILIES)}")
    return FAMILIES[config.family]


def read_hf_config(source: Path) -> MegatronModelConfig:
    """The architecture of a Hugging Face directory, from its config.json.

    Raises:
        UserError: no readable config.json, a family or an architecture that is not known, or a
            field that cannot be honoured.
    """
    path = source / "config.json"
    values = read_json_object(path)
    return _family_of_hf(values, path).read_config(values, str(path))


def _family_of_hf(values: Mapping[str, Any], path: Path) -> Family:
    kind = values.get("model_type")
    families = {family.model_type: family for family in FAMILIES.values()}
    if kind not in families:
        instead = f" ({_INSTEAD[kind]})" if kind in _INSTEAD else ""
        raise UserError(
            f"{path}: model_type {kind!r} is not supported{instead}; supported: "
            f"{', '.join(families)}"
        )
    family = families[kind]
    architectures = values.get("architectures") or list(family.architectures)
    wrong = [a for a in architectures if a not in family.architectures]
    if wrong:
        raise UserError(
            f"{path}: architecture {', '.join(map(str, wrong))} is not supported; supported: "
            f"{', '.join(family.architectures)}"
        )
    return family
