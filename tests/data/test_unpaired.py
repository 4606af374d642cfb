"""Unpaired rows: read, labelled, two to a place, none lost; and what they give an objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_gdpo.data.build import build_dataset
from nemo_gdpo.data.collate import pad_batch
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.inspect import repeats_of
from nemo_gdpo.data.prepared import load_prepared, save_prepared
from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.errors import UserError

Write = Callable[[list[dict[str, Any]]], Path]


def row(number: int, label: bool, **more: Any) -> dict[str, Any]:
    said = f"answer {number}"
    return {"prompt": f"question {'x' * number}\n", "response": said, "label": label} | more


def built(path: Path, tokenizer: Any, **more: Any) -> PreferenceDataset:
    return build_dataset(path, tokenizer, format="unpaired", **more)


def rows_of(data: PreferenceDataset, tokenizer: Any) -> list[tuple[str, str, bool, float | None]]:
    """(prompt, response, label, weight) of both sides of every place."""
    return [
        (tokenizer.decode(prompt), tokenizer.decode(said.ids[:-1]), label, pair.weight)
        for pair in data
        for (prompt, said), label in zip(pair.sequences, pair.labels or (), strict=True)
    ]


def test_two_rows_take_a_place_and_the_last_of_an_odd_number_stands_on_both_sides(
    write_jsonl: Write, smollm2: Any, tmp_path: Path
) -> None:
    path = write_jsonl([row(0, True), row(1, True), row(2, False)])
    data = built(path, smollm2)
    assert rows_of(data, smollm2) == [
        ("question \n", "answer 0", True, 1.0),
        ("question x\n", "answer 1", True, 1.0),
        ("question xx\n", "answer 2", False, 0.5),
        ("question xx\n", "answer 2", False, 0.5),
    ]
    assert [pair.id for pair in data] == ["1+2", "3"]
    loaded = load_prepared(save_prepared(data, tmp_path / "prepared"))
    assert list(loaded) == list(data) and loaded.fingerprint == data.fingerprint
    with pytest.raises(UserError, match="format 'unpaired' instead of None"):
        build_dataset(tmp_path / "prepared", smollm2)


def test_labels_are_of_the_data_and_of_its_fingerprint(write_jsonl: Write, smollm2: Any) -> None:
    one, other = (
        built(write_jsonl([row(0, True), row(1, label)]), smollm2) for label in (True, False)
    )
    assert one.fingerprint != other.fingerprint
    batch = pad_batch(other[:], 64, 0)
    assert batch.chosen_label_B is not None and batch.rejected_label_B is not None
    assert (batch.chosen_label_B.tolist(), batch.rejected_label_B.tolist()) == ([True], [False])


def test_every_sequence_has_its_own_prompt(write_jsonl: Write, smollm2: Any) -> None:
    data = built(write_jsonl([row(0, True), row(3, False)]), smollm2)
    batch = pad_batch(data[:], 32, 0)
    for number, tokens in zip((0, 3), batch.tokens_NS, strict=True):
        text = smollm2.decode(tokens[tokens != 0])
        assert text.startswith(f"question {'x' * number}\nanswer {number}")
    assert data.prompt_lengths_B2().tolist() == [[len(p) for p, _ in data[0].sequences]]


def test_many_chunks_lose_nothing(write_jsonl: Write, smollm2: Any) -> None:
    """257 places are two chunks of the tokeniser; 2 x 257 - 1 rows."""
    rows = [row(number % 7, number % 3 == 0, id=str(number)) for number in range(513)]
    data = built(write_jsonl(rows), smollm2)
    ids = [one for pair in data for one in pair.id.split("+")]
    assert ids == [str(number) for number in range(513)]
    assert [label for *_, label, _ in rows_of(data, smollm2)][:513] == [
        one["label"] for one in rows
    ]


def test_a_score_from_the_threshold_on_is_a_good_one(write_jsonl: Write, smollm2: Any) -> None:
    scores = (0.5, 0.25, 0.75, -1)
    rows = [{"prompt": "q\n", "completion": f"a{i}", "score": s} for i, s in enumerate(scores)]
    data = built(write_jsonl(rows), smollm2, columns=PairColumns(threshold=0.5))
    assert [label for *_, label, _ in rows_of(data, smollm2)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row(1, True) | {"label": 1}, "line 2: 'label' is not true or false"),
        (row(1, True) | {"label": None}, "line 2: no value for 'label'"),
        ({"prompt": "q", "response": "a"}, "line 2: no value for 'label' (columns here"),
        (row(1, True) | {"response": " "}, "line 2, pair '2': empty response"),
        (row(1, True) | {"prompt": " "}, "line 2, pair '2': empty prompt"),
    ],
)
def test_what_is_refused(write_jsonl: Write, smollm2: Any, bad: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        built(write_jsonl([row(0, True), bad]), smollm2)
    assert said in str(refused.value)


def test_a_bad_row_takes_no_other_along(write_jsonl: Write, smollm2: Any) -> None:
    """Found by the tokeniser, when it shares a place already: its partner stands there alone."""
    bad = row(1, True) | {"response": f"oh {smollm2.eos_token} no"}
    data = built(write_jsonl([row(0, True), bad]), smollm2, on_bad_pair="drop")
    assert rows_of(data, smollm2) == [("question \n", "answer 0", True, 0.5)] * 2
    assert data.stats.bad_dropped == {"special token in the text": 1}


def test_rows_that_are_not_asked_for_are_told_how(write_jsonl: Write) -> None:
    with pytest.raises(UserError, match=r"only data\.format=unpaired reads"):
        list(read_pairs(write_jsonl([row(0, True)])))


def test_repeats_are_of_rows(write_jsonl: Write, smollm2: Any) -> None:
    rows = [row(0, True), row(1, True), row(0, True), row(1, False), row(2, True)]
    data = built(write_jsonl(rows), smollm2)
    found = repeats_of(data)
    assert (found.repeated, found.contradictory) == (1, 1)
    assert (data.stats.repeated, data.stats.contradictory) == (1, 1)


def test_limits_cut_each_row_by_its_own_prompt(write_jsonl: Write, smollm2: Any) -> None:
    long = {"prompt": "q\n", "response": "word " * 40, "label": True}
    data = built(write_jsonl([row(0, True), long]), smollm2, max_length=16, max_prompt_length=8)
    assert data[0].rejected.complete is False and data[0].chosen.complete
    assert len(data[0].rejected_prompt_ids) + len(data[0].rejected.ids) == 16
    assert torch.equal(pad_batch(data[:], 16, 0).complete_N, torch.tensor([True, False]))
