"""The texts on which two checkpoints are compared, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.conversion.formats.assets import tokenizer_files
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.jsonl import text_lines

BUILT_IN = (
    "The capital of France is Paris, and the capital of Italy is",
    "Water boils at 100 degrees Celsius at sea level; higher up, where the pressure is lower,",
    "def mean(values):\n    total = 0.0\n    for v in values:\n        total += v\n    return",
    "Q: What is 17 + 26?\nA: 43\nQ: What is 9 * 8?\nA:",
    "Der Zug nach München fährt heute um 14:35 Uhr von Gleis 7, weil",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"], "known_for":',
    "Once there was a lighthouse keeper who wrote a letter every evening and never sent one. On "
    "the first night of winter the lamp went out, and he climbed the stairs with a candle, "
    "counting each step aloud as his father had taught him.",
    "猫は窓のそばで眠っている。外では雨が",
)
RANDOM_ROWS, RANDOM_LENGTH = 4, 48


@dataclass(frozen=True)
class PromptSet:
    """Token ids that both models are run on."""

    ids: tuple[Tensor, ...]
    """One int64 [S] each, at least two tokens long."""
    description: str
    """Origin of the prompts, for the report."""


def read_texts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines do not count.

    Raises:
        UserError: no readable file, or no prompts in it.
    """
    try:
        lines = text_lines(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the prompts cannot be read ({error})") from None
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise UserError(f"{path}: has no prompts; write one a line")
    return texts


def load_tokenizer(assets: Path) -> Any | None:
    """The tokenizer of a model directory; None if it has no files of one.

    Raises:
        UserError: there are files, and they cannot be loaded.
    """
    if not assets.is_dir() or not tokenizer_files(assets):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(assets)
    except Exception as error:  # noqa: BLE001 - a damaged file raises almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{assets}: the tokenizer cannot be loaded ({reason}); put its files beside the "
            "weights, or remove them"
        ) from None


def _random_prompts(config: MegatronModelConfig) -> PromptSet:
    draw = torch.Generator().manual_seed(20)
    length = min(RANDOM_LENGTH, config.max_position_embeddings)
    rows = torch.randint(config.vocab_size, (RANDOM_ROWS, length), generator=draw)
    return PromptSet(
        tuple(rows.unbind()),
        f"{RANDOM_ROWS} rows of {length} random ids: neither side has a tokenizer that loads",
    )


def make_prompts(
    config: MegatronModelConfig, tokenizer: Any | None, texts_file: Path | None
) -> PromptSet:
    """Tokenise the texts of a file, or the built-in ones; without a tokenizer draw ids.

    Args:
        config: the architecture that will read them.
        tokenizer: of the checkpoint, or None.
        texts_file: one prompt a line, or None.

    Raises:
        UserError: texts are asked for and there is no tokenizer, or a prompt does not fit.
    """
    if tokenizer is None:
        if texts_file is not None:
            raise UserError(
                f"{texts_file}: neither checkpoint has a tokenizer for these prompts; put its "
                "files beside the weights, or leave the prompts out to compare on random ids"
            )
        return _random_prompts(config)
    texts = BUILT_IN if texts_file is None else read_texts(texts_file)
    rows = []
    for number, text in enumerate(texts, start=1):
        ids = tokenizer(text)["input_ids"]
        if not 2 <= len(ids) <= config.max_position_embeddings:
            raise UserError(
                f"prompt {number} has {len(ids)} tokens; it takes at least 2 and at most the "
                f"model's {config.max_position_embeddings}"
            )
        if max(ids) >= config.vocab_size:
            raise UserError(
                f"prompt {number} has the token {max(ids)}, and the embedding has only "
                f"{config.vocab_size} rows; tokenizer and weights do not belong together"
            )
        rows.append(torch.tensor(ids))
    origin = "built-in texts" if texts_file is None else f"texts of {texts_file}"
    return PromptSet(tuple(rows), f"{len(rows)} {origin}, {sum(map(len, rows))} tokens")
