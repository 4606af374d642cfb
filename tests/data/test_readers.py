"""Files and data sets, and what is wrong with them, by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from nemo_gdpo.data import ReadStats, read_pairs
from nemo_gdpo.errors import UserError

Write = Callable[..., Path]
GOOD = {"prompt": "p", "chosen": " a", "rejected": " b", "chosen_score": 2.0, "rejected_score": 1.0}
OTHER = {**GOOD, "prompt": "q", "chosen": " c"}


@pytest.fixture(autouse=True)
def _no_cache_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def prompts(path: Any, **arguments: Any) -> list[Any]:
    return [pair.prompt for pair in read_pairs(path, **arguments)]


def test_jsonl_parquet_and_datasets_give_the_same_pairs(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [GOOD, {**OTHER, "chosen_score": None, "rejected_score": None}]
    jsonl = write_jsonl(rows)
    parquet = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    saved, split = tmp_path / "saved", tmp_path / "split"
    datasets.Dataset.from_list(rows).save_to_disk(saved)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(split)
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "train.jsonl").write_bytes(jsonl.read_bytes())
    expected = [(p.id, p.prompt, p.chosen, p.chosen_score) for p in read_pairs(jsonl)]
    assert expected == [("1", "p", " a", 2.0), ("2", "q", " c", None)]
    for path in (parquet, saved, split, directory):
        got = [(p.id, p.prompt, p.chosen, p.chosen_score) for p in read_pairs(path)]
        assert got == expected, path
    with pytest.raises(UserError, match=r"no split 'test', it has train; set data\.split"):
        prompts(split, split="test")


def test_messages_survive_parquet(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (pair,) = read_pairs(path)
    assert (pair.prompt, pair.chosen) == (row["prompt"], row["chosen"])


def test_missing_empty_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file.*data\.train_path"):
        prompts(tmp_path / "gone.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(UserError, match="the file is empty"):
        prompts(empty)
    empty.write_text("\n\n")
    with pytest.raises(UserError, match="it holds no pair"):
        prompts(empty)
    table = tmp_path / "pairs.csv"
    table.write_text("prompt,chosen\n")
    with pytest.raises(UserError, match=r"unknown kind of file '\.csv'"):
        prompts(table)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        prompts(broken)
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    with pytest.raises(UserError, match="not a data set that `datasets` can load"):
        prompts(hollow)


def test_a_hub_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def refuse(*arguments: Any, **keywords: Any) -> None:
        asked.append((arguments, keywords))
        raise ConnectionError("offline")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"someone/preferences: .*hub did not give it \(offline\)"):
        prompts("someone/preferences")
    assert asked == [(("someone/preferences",), {})]  # no code of the data set is trusted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p", "chosen"', r"line 2: not valid JSON"),
        ("[1, 2]", r"line 2: a JSON list, not an object"),
        ("", r"line 2: the line is blank"),
        ('{"prompt": "p", "rejected": "b"}', r"line 2: no value for 'chosen'"),
        ({**GOOD, "chosen": None}, r"line 2: no value for 'chosen'"),
        ({**GOOD, "chosen": " \n"}, r"line 2, pair '2': empty response \(chosen\)"),
        ({**GOOD, "rejected": ""}, r"line 2, pair '2': empty response \(rejected\)"),
        ({**GOOD, "prompt": ""}, r"line 2, pair '2': empty prompt"),
        ({**GOOD, "rejected": " a"}, r"line 2, pair '2': identical chosen and rejected"),
        ({**GOOD, "chosen_score": 0.5}, r"line 2, pair '2': the chosen response scores 0.5, less"),
        ({**GOOD, "chosen_score": None}, r"line 2, pair '2': the score of the chosen"),
        ({**GOOD, "chosen_score": float("nan")}, r"line 2: 'chosen_score' is nan; .*finite"),
        ({**GOOD, "chosen_score": 1e39}, r"line 2: 'chosen_score' is 1e\+39; .*finite"),
        ({**GOOD, "chosen_score": "2"}, r"line 2: 'chosen_score' is text, not a number"),
        ({**GOOD, "chosen_score": True}, r"line 2: 'chosen_score' is true/false, not a number"),
        ({**GOOD, "id": [1]}, r"line 2: id is a list"),
    ],
)
def test_every_mistake_names_file_and_line(write_jsonl: Write, line: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"pairs\.jsonl, {message}"):
        prompts(write_jsonl([GOOD, line, OTHER]))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        json.dumps(GOOD).encode() + b"\n" + '{"prompt": "é"}'.encode("latin-1") + b"\n"
    )
    with pytest.raises(UserError, match=r"line 2: not UTF-8"):
        prompts(path)


def test_duplicate_ids_name_both_lines(write_jsonl: Write) -> None:
    path = write_jsonl([{**GOOD, "id": "x"}, OTHER, {**OTHER, "id": "x"}])
    with pytest.raises(UserError, match=r"line 3: id 'x' was already used at .*line 1"):
        prompts(path)


def test_scores_required(write_jsonl: Write) -> None:
    bare = {key: GOOD[key] for key in ("prompt", "chosen", "rejected")}
    path = write_jsonl([GOOD, {**bare, "id": "nine"}])
    assert prompts(path) == ["p", "p"]
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 2, pair 'nine': no scores"):
        prompts(path, require_scores=True)


def test_ties_are_dropped_and_counted_only_for_scores(write_jsonl: Write) -> None:
    tie = {**GOOD, "chosen_score": 1.0}
    # Different in float64, equal in the float32 that the objective computes in.
    near_tie = {**GOOD, "chosen_score": 1.0 + 1e-9}
    path = write_jsonl([tie, OTHER, near_tie])
    assert prompts(path) == ["p", "q", "p"]
    stats = ReadStats()
    assert prompts(path, require_scores=True, stats=stats) == ["q"]
    assert (stats.pairs, stats.ties_dropped) == (1, 2)
    with pytest.raises(UserError, match="all 2 pairs were dropped"):
        prompts(write_jsonl([tie, near_tie]), require_scores=True)


def test_bad_pairs_can_be_dropped_and_are_counted(write_jsonl: Write) -> None:
    rows = [{**GOOD, "chosen": " "}, OTHER, {**GOOD, "rejected": " a"}, {**GOOD, "rejected": ""}]
    stats = ReadStats()
    assert prompts(write_jsonl(rows), on_bad_pair="drop", stats=stats) == ["q"]
    assert stats.bad_dropped == {"empty response": 2, "identical chosen and rejected": 1}
    with pytest.raises(UserError, match=r"data\.on_bad_pair='skip' is unknown"):
        prompts(write_jsonl(rows), on_bad_pair="skip")
    # What cannot be read is never dropped.
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        prompts(write_jsonl(["{", OTHER]), on_bad_pair="drop")
