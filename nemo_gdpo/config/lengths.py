"""Lengths in tokens that fit the model, where nobody chose any."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from nemo_gdpo.config.model_files import read_model_config
from nemo_gdpo.config.places import start_place
from nemo_gdpo.errors import UserError

USUAL_LENGTH = 1024
USUAL_PROMPT = 512


def fitting_length(path: Any) -> int:
    """Tokens of a pair: the usual length, or the model's positions where it has fewer.

    Args:
        path: of the starting model; one that says nothing of its positions is no reason to refuse
            here, since the checks of the configuration name what is wrong with it.
    """
    try:
        found = read_model_config(start_place(path)) if isinstance(path, str) else None
    except UserError:
        found = None
    positions = (found or {}).get("max_position_embeddings")
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
        return USUAL_LENGTH
    return min(USUAL_LENGTH, positions)


def fitting_prompt(length: Any) -> int:
    """Tokens of a prompt: the usual number, at most half of a pair's."""
    if isinstance(length, bool) or not isinstance(length, int):
        return USUAL_PROMPT  # the other key is refused by its own name
    return max(1, min(USUAL_PROMPT, length // 2))


def resolve_lengths() -> None:
    """`${fitting_length:PATH}` and `${fitting_prompt:LENGTH}` in a composed configuration."""
    OmegaConf.register_new_resolver("fitting_length", fitting_length, replace=True)
    OmegaConf.register_new_resolver("fitting_prompt", fitting_prompt, replace=True)
