"""Tokenised pairs as the `data` section asks for them: for training, and ahead of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.config.stop_tokens import stop_token_ids
from nemo_gdpo.data.build import build_dataset
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.templates import read_template

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")


def build_split(
    data: DataConfig,
    name: SplitName,
    tokenizer: Any,
    assets: Path,
    *,
    require_scores: bool,
    date: str | None = None,
    output: Path | None = None,
) -> PreferenceDataset | None:
    """Read, check, tokenise and cut one split; None when no path is configured for it.

    Args:
        tokenizer: a transformers tokenizer.
        assets: directory with the model's generation_config.json, which names its stop tokens.
        require_scores: the objective grades pairs by their scores.
        date: that a template with a clock writes, where data.date says none.
        output: see `build_dataset`.

    Raises:
        UserError: anything wrong with the input, or with the chat template's file.
    """
    path = data.path_of(name)
    if path is None:
        return None
    return build_dataset(
        path,
        tokenizer,
        format=data.reader_format,
        split=data.split_of(name),
        max_prompt_length=data.max_prompt_length,
        max_length=data.max_length,
        truncation_mode=data.truncation_mode,
        require_scores=require_scores,
        stop_token_ids=stop_token_ids(assets),
        chat_template=read_template(data.chat_template),
        on_bad_pair=data.on_bad_pair,
        date=data.date or date,
        progress=True,
        workers=data.workers,
        output=output,
        columns=PairColumns.of(data),
    )
