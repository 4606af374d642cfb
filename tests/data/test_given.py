"""Columns of weights and margins: read, kept, compared, and refused with file and line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.data.build import build_dataset
from nemo_gdpo.data.collate import pack_batch, pad_batch
from nemo_gdpo.data.dataset import PreferenceDataset, collect_arrays
from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.prepared import load_prepared, save_prepared
from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.data.types import ReadStats
from nemo_gdpo.errors import UserError

Write = Callable[[list[dict[str, Any]]], Path]
BOTH = PairColumns("w", "margin")


def pair(number: int, **more: Any) -> dict[str, Any]:
    text = {"prompt": f"question {number}?\n", "chosen": "yes", "rejected": "no"}
    return text | {"w": 0.5 + number, "margin": float(number)} | more


def test_both_are_read_and_no_format_sees_them(write_jsonl: Write) -> None:
    """TRL's `margin` would be scores."""
    path = write_jsonl([pair(0), pair(1)])
    found = list(read_pairs(path, columns=BOTH))
    assert [(one.weight, one.margin) for one in found] == [(0.5, 0.0), (1.5, 1.0)]
    assert all(one.chosen_score is None and one.meta == {} for one in found)
    (first, _) = read_pairs(path)
    assert (first.weight, first.margin, first.chosen_score) == (None, None, 0.0)
    assert first.meta == {"w": 0.5}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (pair(1, w=-0.5), "line 2: 'w' is -0.5; a weight is not negative"),
        (pair(1, margin=-1), "line 2: 'margin' is -1; a margin is not negative"),
        (pair(1, w=float("inf")), "line 2"),
        (pair(1, margin=1e39), "line 2: 'margin' is 1e+39; margins must be finite float32"),
        (pair(1, w="1"), "line 2: 'w' is text, not a number"),
        (pair(1, w=True), "line 2: 'w' is true/false, not a number"),
        (pair(1, w=None), "line 2: no value for 'w' (the column is there and holds null)"),
        ({k: v for k, v in pair(1).items() if k != "w"}, "line 2: no value for 'w' (columns here"),
    ],
)
def test_what_is_refused(write_jsonl: Write, row: dict[str, Any], said: str) -> None:
    path = write_jsonl([pair(0), row])
    with pytest.raises(UserError) as refused:
        list(read_pairs(path, columns=BOTH))
    assert str(path) in str(refused.value) and said in str(refused.value)


def test_bad_ones_are_dropped_and_counted(write_jsonl: Write) -> None:
    path, stats = write_jsonl([pair(0), pair(1, w=-1)]), ReadStats()
    assert len(list(read_pairs(path, columns=BOTH, on_bad_pair="drop", stats=stats))) == 1
    assert stats.bad_dropped == {"a negative weight": 1}


def test_rows_that_are_no_pairs_have_none(write_jsonl: Write) -> None:
    path = write_jsonl([{"prompt": "q", "text": "a", "reward": 1.0}])
    with pytest.raises(UserError, match=r"data\.weight_column: a row of odpo_json is no pair"):
        list(read_pairs(path, columns=PairColumns("w")))


def built(path: Path, tokenizer: Any, columns: PairColumns) -> PreferenceDataset:
    return build_dataset(path, tokenizer, columns=columns)


def test_they_are_kept_prepared_and_identified(
    write_jsonl: Write, tmp_path: Path, llama3: Any
) -> None:
    path = write_jsonl([pair(0), pair(1), pair(2)])
    data = built(path, llama3, BOTH)
    assert [(one.weight, one.margin) for one in data] == [(0.5, 0.0), (1.5, 1.0), (2.5, 2.0)]
    loaded = load_prepared(save_prepared(data, tmp_path / "prepared"))
    assert list(loaded) == list(data) and loaded.fingerprint == data.fingerprint
    other = built(write_jsonl([pair(0), pair(1), pair(2, w=2.25)]), llama3, BOTH)
    assert other.fingerprint != data.fingerprint
    with pytest.raises(UserError, match="weight_column 'w' instead of None"):
        built(tmp_path / "prepared", llama3, PairColumns())


def test_a_column_that_is_not_read_changes_no_identity(write_jsonl: Write, llama3: Any) -> None:
    """The fingerprint that the program gave before it read weights."""
    plain = {"prompt": "question?\n", "chosen": "yes", "rejected": "no"}
    data = built(write_jsonl([plain]), llama3, PairColumns())
    assert data.fingerprint.startswith("aededcaea9895708398bb433d3fb22a1")
    assert data.arrays.optional == {} and "weight_column" not in data.settings
    ones = built(write_jsonl([plain | {"w": 1}]), llama3, PairColumns("w"))
    assert ones.arrays.tokens.tolist() == data.arrays.tokens.tolist()
    assert ones.fingerprint != data.fingerprint


def test_a_batch_has_them_padded_or_packed(write_jsonl: Write, llama3: Any) -> None:
    data = built(write_jsonl([pair(0), pair(1)]), llama3, BOTH)
    for batch in (pad_batch(data[:], 64, 0), pack_batch(data[:], None, 0)):
        assert batch.weight_B is not None and batch.margin_B is not None
        assert (batch.weight_B.tolist(), batch.margin_B.tolist()) == ([0.5, 1.5], [0.0, 1.0])
    bare = [replace(one, weight=None, margin=None) for one in data]
    assert pad_batch(bare, 64, 0).weight_B is None


def test_some_pairs_with_a_weight_and_others_without_are_no_data_set(
    write_jsonl: Write, llama3: Any
) -> None:
    first, second = built(write_jsonl([pair(0), pair(1)]), llama3, BOTH)
    with pytest.raises(ValueError, match="1 of 2 pairs have a weight"):
        collect_arrays([first, replace(second, weight=None)])
