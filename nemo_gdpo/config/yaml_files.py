"""YAML in and out, by OmegaConf's rules: 1e-6 is a number, `.inf` too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The mapping of a file, interpolations kept as text; {} for an empty file.

    Raises:
        ValueError: why it cannot be read, on one line.
    """
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(loaded, dict):
        raise ValueError("holds no mapping of keys")
    return {str(key): value for key, value in loaded.items()}


def yaml_text(plain: Mapping[str, Any]) -> str:
    """Nested dictionaries, lists and values as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))
