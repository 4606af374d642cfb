"""A data set of tokenised pairs in memory, and the one function that builds it.

Tokens live in one flat int32 array (a list of Python tuples would cost ten times as much on the
public data sets); pairs are made when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.data.templates import PairEncoder
from nemo_gdpo.data.tokenize import (
    Limits,
    TokenizeStats,
    no_pair_is_left,
    tokenize_pairs,
)
from nemo_gdpo.data.types import ReadStats, TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError
from nemo_gdpo.progress import progress_bar


@dataclass(frozen=True)
class PairArrays:
    """Columns of B pairs; segments 3i, 3i+1, 3i+2 are pair i's prompt, chosen and rejected."""

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    """Offsets [3B + 1] into `tokens`."""
    complete: npt.NDArray[np.bool_]
    """[B, 2]: chosen, rejected."""
    scores: npt.NDArray[np.float64]
    """[B, 2]; NaN where a pair has no score."""
    ids: list[str]
    metas: list[str]
    """Canonical JSON of each pair's meta."""


class PreferenceDataset(Sequence[TokenizedPair]):
    """Tokenised pairs with what identifies them.

    Attributes:
        fingerprint: SHA-256 (hex) over ids, tokens, completeness, scores, meta and the two tokens
            below; checkpoints and reference caches are bound to it.
        end_token_id: the token that generation stops on and that complete responses end in.
        pad_token_id: what padding is filled with.
        stats: what was read, cut and dropped.
        settings: what the pairs were made with (format, tokenizer, template, limits).
    """

    def __init__(
        self,
        arrays: PairArrays,
        *,
        end_token_id: int,
        pad_token_id: int,
        stats: TokenizeStats,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.arrays = arrays
        self.end_token_id = end_token_id
        self.pad_token_id = pad_token_id
        self.stats = stats
        self.settings = dict(settings or {})
        self._check_ends()
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self.arrays.ids)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPair | list[TokenizedPair]:
        if isinstance(index, slice):
            return [self._pair(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return self._pair(index % len(self))

    def __iter__(self) -> Iterator[TokenizedPair]:
        return (self._pair(index) for index in range(len(self)))

    def _check_ends(self) -> None:
        """The last label of every complete response is the end token, or nothing is built."""
        last_B2 = self.arrays.tokens[self.arrays.offsets[1:] - 1].reshape(-1, 3)[:, 1:]
        wrong = np.flatnonzero((self.arrays.complete & (last_B2 != self.end_token_id)).any(axis=1))
        if wrong.size:
            raise ValueError(
                f"pair {self.arrays.ids[wrong[0]]!r}: a complete response must end in token "
                f"{self.end_token_id}"
            )

    def _pair(self, index: int) -> TokenizedPair:
        arrays = self.arrays
        prompt, chosen, rejected = (
            tuple(arrays.tokens[arrays.offsets[k] : arrays.offsets[k + 1]].tolist())
            for k in range(3 * index, 3 * index + 3)
        )
        complete = arrays.complete[index].tolist()
        chosen_score, rejected_score = (
            None if np.isnan(value) else float(value) for value in arrays.scores[index]
        )
        return TokenizedPair(
            arrays.ids[index],
            prompt,
            TokenizedResponse(chosen, complete[0]),
            TokenizedResponse(rejected, complete[1]),
            chosen_score,
            rejected_score,
            json.loads(arrays.metas[index]),
        )

    def _fingerprint(self) -> str:
        arrays = self.arrays
        digest = hashlib.sha256(b"nemo_gdpo pairs 1\n")
        head = [self.end_token_id, self.pad_token_id, len(self)]
        # JSON of a list quotes and separates, so that no two lists of ids give the same bytes.
        digest.update(json.dumps([head, arrays.ids, arrays.metas]).encode())
        for column, kind in (
            (arrays.tokens, "<i4"),
            (arrays.offsets, "<i8"),
            (arrays.complete, "|u1"),
            (arrays.scores, "<f8"),
        ):
            digest.update(np.ascontiguousarray(column.astype(kind)).tobytes())
        return digest.hexdigest()


def collect_arrays(pairs: Iterable[TokenizedPair]) -> PairArrays:
    tokens, offsets, scores, complete = array("i"), array("q", [0]), array("d"), array("b")
    ids: list[str] = []
    metas: list[str] = []
    for pair in pairs:
        for response in (pair.chosen, pair.rejected):
            if not response.ids or not pair.prompt_ids:
                raise ValueError(f"pair {pair.id!r} has an empty prompt or response")
            complete.append(response.complete)
        for segment in (pair.prompt_ids, pair.chosen.ids, pair.rejected.ids):
            tokens.extend(segment)
            offsets.append(len(tokens))
        for value in (pair.chosen_score, pair.rejected_score):
            scores.append(float("nan") if value is None else value)
        ids.append(pair.id)
        metas.append(json.dumps(pair.meta, sort_keys=True, default=str))
    return PairArrays(
        np.array(tokens, dtype=np.int32),
        np.array(offsets, dtype=np.int64),
        np.array(complete, dtype=np.bool_).reshape(-1, 2),
        np.array(scores, dtype=np.float64).reshape(-1, 2),
        ids,
        metas,
    )


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
) -> PreferenceDataset:
    """Read, check, tokenise and cut a file; or load it, when `path` is a prepared directory.

    Args: see `read_pairs`, `PairEncoder` and `Limits`. A prepared directory keeps its own date
        where none is given; `progress` shows a bar.

    Raises:
        UserError: anything wrong with the input; a prepared directory made with other settings.
    """
    from nemo_gdpo.data.prepared import is_prepared, load_prepared, prepared_date

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
    }
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
    )
    tokenized = tokenize_pairs(raw, encoder, limits, on_bad_pair=on_bad_pair, stats=stats)
    label = f"tokenise {split}"
    arrays = collect_arrays(
        progress_bar(tokenized, total=None, unit="pair", label=label, enabled=progress)
    )
    if not arrays.ids:
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
