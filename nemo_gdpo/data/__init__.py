"""Preference data: readers, chat templates, tokenised pairs, batches and a resumable order."""

from __future__ import annotations

from nemo_gdpo.data.build import build_dataset
from nemo_gdpo.data.collate import (
    PackedBatch,
    PaddedBatch,
    pack_batch,
    pad_batch,
    responses_from_flat,
)
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.prepared import is_prepared, load_prepared, save_prepared
from nemo_gdpo.data.readers import FORMAT_NAMES, read_pairs
from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.templates import PairEncoder
from nemo_gdpo.data.tokenize import Limits, TokenizeStats, tokenize_pairs
from nemo_gdpo.data.types import (
    Message,
    Messages,
    RawPair,
    ReadStats,
    TokenizedPair,
    TokenizedResponse,
)

__all__ = [
    "FORMAT_NAMES",
    "SENTINEL",
    "Limits",
    "Message",
    "Messages",
    "PackedBatch",
    "PaddedBatch",
    "PairEncoder",
    "PreferenceDataset",
    "PreferenceSampler",
    "RawPair",
    "ReadStats",
    "TokenizeStats",
    "TokenizedPair",
    "TokenizedResponse",
    "build_dataset",
    "is_prepared",
    "load_prepared",
    "pack_batch",
    "pad_batch",
    "read_pairs",
    "responses_from_flat",
    "save_prepared",
    "tokenize_pairs",
]
