"""Refusal of credentials in a configuration: it is printed, logged and kept beside runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from nemo_gdpo.errors import UserError

_WORDS = {"apikey", "token", "password", "passwd", "secret", "credential", "credentials"}
_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("wandb", "key")}
# Hugging Face, OpenAI-style, GitHub and (40 hexadecimal digits) Weights & Biases.
_VALUE = re.compile(r"hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|[0-9a-f]{40}")


def looks_secret(key: str) -> bool:
    """Whether a dotted key names a credential; `model.logprob_chunk_tokens` does not."""
    words = [word for word in re.split(r"[^a-z0-9]+", key.lower()) if word]
    return bool(_WORDS & set(words)) or bool(_PAIRS & set(itertools.pairwise(words)))


def refuse_secrets(overrides: Iterable[str]) -> None:
    """Refuse overrides that carry a credential. The value is not repeated.

    Raises:
        UserError: naming the key and the environment variable to use.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if looks_secret(key) or _VALUE.fullmatch(value.strip("'\"")):
            raise UserError(
                f"{key}: looks like a credential, which would be visible in process lists, logs "
                "and config.yaml; export it instead (WANDB_API_KEY for Weights & Biases, HF_TOKEN "
                "for the Hugging Face hub)"
            )
