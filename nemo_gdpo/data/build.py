"""The one function that makes a data set out of a file: read, check, tokenise, cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.prepared import is_prepared, load_prepared, prepared_date
from nemo_gdpo.data.readers import UNPAIRED, read_pairs
from nemo_gdpo.data.spool import Spool
from nemo_gdpo.data.templates import PairEncoder
from nemo_gdpo.data.tokenize import Limits, Tally, TokenizeStats, no_pair_is_left
from nemo_gdpo.data.types import ReadStats
from nemo_gdpo.data.unpaired import two_by_two
from nemo_gdpo.data.workers import encoded_chunks
from nemo_gdpo.errors import UserError
from nemo_gdpo.progress import progress_bar


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over what decides token ids: vocabulary, special tokens and, if fast, the rest."""
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    digest.update(json.dumps([special, sorted(tokenizer.all_special_ids)]).encode())
    if tokenizer.is_fast:
        pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
        # Calls with padding or truncation leave their settings behind; they are not the tokenizer.
        pipeline.update(padding=None, truncation=None)
        digest.update(json.dumps(pipeline, sort_keys=True).encode())
    return digest.hexdigest()


def build_dataset(
    path: str | Path,
    tokenizer: Any,
    *,
    format: str = "auto",
    split: str = "train",
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    truncation_mode: str = "keep_end",
    require_scores: bool = False,
    stop_token_ids: Collection[int] | None = None,
    chat_template: str | None = None,
    on_bad_pair: str = "error",
    date: str | None = None,
    progress: bool = False,
    workers: int | None = 1,
    output: Path | None = None,
    columns: PairColumns = PairColumns(),  # noqa: B008 - it does not change
) -> PreferenceDataset:
    """Read, check, tokenise and cut a file; or load it, when `path` is a prepared directory.

    Args: see `read_pairs`, `PairEncoder` and `Limits`. A prepared directory keeps its own date
        where none is given; `progress` shows a bar.
        workers: processes that tokenise a large file; None: as many as there are CPUs. What comes
            out is the same.
        columns: with a weight or a margin of each pair.
        output: directory that the pairs are written to later; on its disk they lie until then.

    Raises:
        UserError: anything wrong with the input; a prepared directory made with other settings.
        RunError: no room for the tokens, or a process that tokenises has ended.
    """
    limits = Limits(max_prompt_length, max_length, truncation_mode)
    encoder = PairEncoder(
        tokenizer,
        stop_token_ids=stop_token_ids,
        chat_template=chat_template,
        date=date or prepared_date(path),
    )
    template = encoder.chat_template
    settings: dict[str, Any] = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template": None
        if template is None
        else hashlib.sha256(str(template).encode()).hexdigest(),
        "stop_token_ids": None if stop_token_ids is None else sorted(stop_token_ids),
        "max_prompt_length": max_prompt_length,
        "max_length": max_length,
        "truncation_mode": truncation_mode,
        "require_scores": require_scores,
        "on_bad_pair": on_bad_pair,
        **({"format": UNPAIRED} if format == UNPAIRED else {}),
    }
    settings |= columns.settings()
    if encoder.date is not None:
        settings["date"] = encoder.date
    if is_prepared(path):
        return load_prepared(path, expected_settings=settings)
    reading, stats = ReadStats(), TokenizeStats()
    raw = read_pairs(
        path,
        format=format,
        split=split,
        require_scores=require_scores,
        on_bad_pair=on_bad_pair,
        stats=reading,
        columns=columns,
    )
    tally = Tally(on_bad_pair=on_bad_pair, stats=stats)
    spool = Spool(output)
    try:
        with progress_bar(
            total=None, unit="pair", label=f"tokenise {split}", enabled=progress
        ) as bar:
            for places, chunk in encoded_chunks(two_by_two(raw), encoder, limits, workers):
                before = stats.pairs
                for place, outcome in zip(places, chunk.outcomes, strict=True):
                    tally.take(outcome, place)
                spool.append(chunk.arrays)
                bar.update(stats.pairs - before)
        arrays = spool.finish()
    finally:
        spool.close()
    if not len(arrays.ids):
        raise UserError(no_pair_is_left(path, stats))
    stats.add_reading(reading)
    assert stats.end_token_id is not None
    return PreferenceDataset(
        arrays,
        end_token_id=stats.end_token_id,
        pad_token_id=encoder.pad_token_id,
        stats=stats,
        settings=settings,
    )
