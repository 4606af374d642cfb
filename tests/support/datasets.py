"""Data sets out of pairs that a test wrote down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemo_gdpo.data.dataset import PreferenceDataset, collect_arrays
from nemo_gdpo.data.tokenize import TokenizeStats
from nemo_gdpo.data.types import TokenizedPair


def dataset_of(
    pairs: Iterable[TokenizedPair],
    *,
    end_token_id: int,
    pad_token_id: int,
    settings: dict[str, Any] | None = None,
) -> PreferenceDataset:
    """The pairs in their order, as if a file had held nothing else."""
    arrays = collect_arrays(pairs)
    return PreferenceDataset(
        arrays,
        end_token_id=end_token_id,
        pad_token_id=pad_token_id,
        stats=TokenizeStats(pairs=len(arrays.ids), end_token_id=end_token_id),
        settings=settings,
    )
