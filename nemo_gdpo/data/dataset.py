"""A data set of tokenised pairs: columns, in memory or mapped from files.

Tokens live in one flat int32 array (a list of Python tuples would cost ten times as much on the
public data sets); pairs are made when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from nemo_gdpo.data.tokenize import TokenizeStats
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse

BLOCK = 1 << 16
"""Pairs, or sixteenths of tokens, that are looked at at once: memory does not grow with all."""


OPTIONAL = {
    "weights": "<f8", "margins": "<f8",
    "labels": "|b1", "second_tokens": "<i4", "second_offsets": "<i8",
}  # fmt: skip
"""Columns of `PairArrays` that not every data set has -> type of their numbers."""


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
    ids: Sequence[str]
    metas: Sequence[str]
    """Canonical JSON of each pair's meta."""
    weights: npt.NDArray[np.float64] | None = None
    """[B], where the data has weights; likewise the margins."""
    margins: npt.NDArray[np.float64] | None = None
    labels: npt.NDArray[np.bool_] | None = None
    """[B, 2], of unpaired rows, two of which take the places of chosen and rejected."""
    second_tokens: npt.NDArray[np.int32] | None = None
    """Prompts of the second rows; `second_offsets` [B + 1] into them."""
    second_offsets: npt.NDArray[np.int64] | None = None

    @property
    def optional(self) -> dict[str, npt.NDArray[Any]]:
        """The columns that not every data set has, those that are here, by name."""
        columns: dict[str, npt.NDArray[Any] | None] = {
            "weights": self.weights,
            "margins": self.margins,
            "labels": self.labels,
            "second_tokens": self.second_tokens,
            "second_offsets": self.second_offsets,
        }
        return {name: column for name, column in columns.items() if column is not None}


class PreferenceDataset(Sequence[TokenizedPair]):
    """Tokenised pairs with what identifies them.

    Attributes:
        fingerprint: SHA-256 (hex) over ids, tokens, completeness, scores, meta, the two tokens
            below, and the optional columns that are there; checkpoints and reference caches are
            bound to it.
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
        fingerprint: str | None = None,
    ) -> None:
        """Take the columns, and look through all of them.

        Args:
            arrays: columns.
            end_token_id: see above, as the other arguments.
            fingerprint: of columns that were looked through before; they are not again.

        Raises:
            ValueError: a complete response has another last token.
        """
        self.arrays = arrays
        self.end_token_id = end_token_id
        self.pad_token_id = pad_token_id
        self.stats = stats
        self.settings = dict(settings or {})
        if fingerprint is None:
            self._check_ends()
        self.fingerprint = self._fingerprint() if fingerprint is None else fingerprint

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
        arrays = self.arrays
        for start in range(0, len(self), BLOCK):
            stop = min(start + BLOCK, len(self))
            last_K = arrays.offsets[3 * start + 1 : 3 * stop + 1] - 1
            last_B2 = arrays.tokens[last_K].reshape(-1, 3)[:, 1:]
            is_other_B2 = last_B2 != self.end_token_id
            wrong = np.flatnonzero((arrays.complete[start:stop] & is_other_B2).any(axis=1))
            if wrong.size:
                raise ValueError(
                    f"pair {arrays.ids[start + int(wrong[0])]!r}: a complete response must end in "
                    f"token {self.end_token_id}"
                )

    def lengths_B3(self) -> npt.NDArray[np.int64]:
        """Tokens of every pair's prompt, chosen and rejected response, int64 [B, 3]."""
        return np.diff(self.arrays.offsets).reshape(-1, 3)

    def prompt_lengths_B2(self) -> npt.NDArray[np.int64]:
        """Tokens of the prompt on either side, int64 [B, 2]."""
        first_B = self.lengths_B3()[:, 0]
        second = self.arrays.second_offsets
        return np.stack([first_B, first_B if second is None else np.diff(second)], axis=1)

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
            None if arrays.weights is None else float(arrays.weights[index]),
            None if arrays.margins is None else float(arrays.margins[index]),
            *self._second(index),
        )

    def _second(self, index: int) -> tuple[tuple[bool, bool] | None, tuple[int, ...] | None]:
        """Labels and second prompt, of unpaired rows."""
        arrays = self.arrays
        if arrays.labels is None or arrays.second_tokens is None or arrays.second_offsets is None:
            return None, None
        one, other = arrays.labels[index].tolist()
        start, stop = arrays.second_offsets[index : index + 2]
        return (one, other), tuple(arrays.second_tokens[start:stop].tolist())

    def _fingerprint(self) -> str:
        arrays = self.arrays
        digest = hashlib.sha256(b"nemo_gdpo pairs 1\n")
        head = [self.end_token_id, self.pad_token_id, len(self)]
        # JSON of a list quotes and separates, so that no two lists of ids give the same bytes.
        digest.update(f"[{json.dumps(head)}".encode())
        for texts in (arrays.ids, arrays.metas):
            for block in _json_list(texts):
                digest.update(block.encode())
        digest.update(b"]")
        columns: tuple[tuple[npt.NDArray[Any], str], ...] = (
            (arrays.tokens, "<i4"),
            (arrays.offsets, "<i8"),
            (arrays.complete, "|u1"),
            (arrays.scores, "<f8"),
        )
        for column, kind in columns:
            for piece in _blocks(column, kind):
                digest.update(piece)
        # Named, and last: data without them has the fingerprint that it always had.
        for name, column in arrays.optional.items():
            digest.update(name.encode())
            for piece in _blocks(column, OPTIONAL[name]):
                digest.update(piece)
        return digest.hexdigest()


def _blocks(column: npt.NDArray[Any], kind: str) -> Iterator[bytes]:
    """The numbers of a column, piece by piece."""
    flat = column.reshape(-1)
    for start in range(0, len(flat), 16 * BLOCK):
        yield flat[start : start + 16 * BLOCK].astype(kind).tobytes()


def _json_list(texts: Sequence[str]) -> Iterator[str]:
    """What `json.dumps` writes of a list within a list, piece by piece."""
    yield ", ["
    separator = ""
    each = iter(texts)
    while block := list(islice(each, BLOCK)):
        yield separator + json.dumps(block)[1:-1]
        separator = ", "
    yield "]"


def collect_arrays(pairs: Iterable[TokenizedPair]) -> PairArrays:
    """Columns of pairs, in memory.

    Raises:
        ValueError: a pair has an empty prompt or response, or some have a weight and others none,
            or some are unpaired rows.
    """
    tokens, offsets, scores, complete = array("i"), array("q", [0]), array("d"), array("b")
    ids: list[str] = []
    metas: list[str] = []
    weights: list[float | None] = []
    margins: list[float | None] = []
    labels: list[tuple[bool, bool]] = []
    seconds, second_offsets = array("i"), array("q", [0])
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
        weights.append(pair.weight)
        margins.append(pair.margin)
        if pair.labels is not None:
            labels.append(pair.labels)
            seconds.extend(pair.rejected_prompt_ids)
            second_offsets.append(len(seconds))
        ids.append(pair.id)
        metas.append(json.dumps(pair.meta, sort_keys=True, default=str))
    if len(labels) not in (0, len(ids)):
        raise ValueError(f"{len(ids)} items, of which {len(labels)} are unpaired rows")
    return PairArrays(
        np.array(tokens, dtype=np.int32),
        np.array(offsets, dtype=np.int64),
        np.array(complete, dtype=np.bool_).reshape(-1, 2),
        np.array(scores, dtype=np.float64).reshape(-1, 2),
        ids,
        metas,
        _numbers(weights, "weight"),
        _numbers(margins, "margin"),
        np.array(labels, dtype=np.bool_).reshape(-1, 2) if labels else None,
        np.array(seconds, dtype=np.int32) if labels else None,
        np.array(second_offsets, dtype=np.int64) if labels else None,
    )


def _numbers(values: list[float | None], what: str) -> npt.NDArray[np.float64] | None:
    """A column that all pairs have, or none.

    Raises:
        ValueError: some have it.
    """
    found = [value for value in values if value is not None]
    if len(found) not in (0, len(values)):
        raise ValueError(f"{len(found)} of {len(values)} pairs have a {what}")
    return np.array(found, dtype=np.float64) if found else None
