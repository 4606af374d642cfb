"""The data set in memory, its fingerprint, and its prepared form on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.data import (
    PreferenceDataset,
    TokenizedPair,
    TokenizedResponse,
    build_dataset,
    is_prepared,
    load_prepared,
    save_prepared,
)
from nemo_gdpo.errors import UserError
from tests.support.datasets import dataset_of

END, PAD = 2, 0
PAIRS = [
    TokenizedPair(
        "a",
        (1, 11),
        TokenizedResponse((21, 22, END), True),
        TokenizedResponse((31,), False),
        2.0,
        0.5,
        {"raters_agree": 9},
    ),
    TokenizedPair(
        "b", (1,), TokenizedResponse((41, END), True), TokenizedResponse((51, END), True)
    ),
]
ROWS = [
    {"prompt": "It is", "chosen": " good", "rejected": " bad"},
    {"prompt": "It was", "chosen": " long", "rejected": " dull", "id": "x"},
]


def make(pairs: list[TokenizedPair], end: int = END, pad: int = PAD) -> PreferenceDataset:
    return dataset_of(pairs, end_token_id=end, pad_token_id=pad)


def test_pairs_come_back_as_they_went_in() -> None:
    dataset = make(PAIRS)
    assert list(dataset) == PAIRS
    assert (dataset[0], dataset[-1], dataset[0:1]) == (PAIRS[0], PAIRS[1], PAIRS[:1])
    assert (len(dataset), dataset.stats.pairs) == (2, 2)
    with pytest.raises(IndexError):
        dataset[2]


def test_the_fingerprint_sees_every_change() -> None:
    first, second = PAIRS
    chosen, rejected = first.chosen, first.rejected
    changed = {
        "id": replace(first, id="c"),
        "prompt": replace(first, prompt_ids=(1, 12)),
        "chosen": replace(first, chosen=TokenizedResponse((21, 23, END), True)),
        "border": replace(
            first, prompt_ids=(1,), chosen=TokenizedResponse((11, *chosen.ids), True)
        ),
        "complete": replace(first, chosen=TokenizedResponse(chosen.ids, False)),
        "swap": replace(first, chosen=rejected, rejected=chosen),
        "score": replace(first, rejected_score=0.25),
        "no score": replace(first, rejected_score=None),
        "meta": replace(first, meta={"raters_agree": 8}),
    }
    prints = {name: make([pair, second]).fingerprint for name, pair in changed.items()}
    prints["order"] = make([second, first]).fingerprint
    prints["fewer"] = make([first]).fingerprint
    prints["pad"] = make(PAIRS, pad=9).fingerprint
    prints["same"] = make(PAIRS).fingerprint
    assert len(set(prints.values())) == len(prints)
    assert make(list(PAIRS)).fingerprint == prints["same"]
    assert len(prints["same"]) == 64


def test_a_complete_response_must_end_in_the_end_token() -> None:
    with pytest.raises(ValueError, match="pair 'a': a complete response must end in token 3"):
        make(PAIRS, end=3)
    wrong = replace(PAIRS[1], rejected=TokenizedResponse((51,), True))
    with pytest.raises(ValueError, match="pair 'b': a complete response"):
        make([PAIRS[0], wrong])


def test_build_from_a_file(write_jsonl: Callable[..., Path], smollm2: Any) -> None:
    row = {
        "prompt": [{"role": "user", "content": "Is it good?"}],
        "chosen": [{"role": "assistant", "content": "It is good."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "chosen_score": 2,
        "rejected_score": 1,
        "raters_agree": 9,
    }
    rows = [row, {**row, "rejected_score": 2}]
    dataset = build_dataset(write_jsonl(rows), smollm2, require_scores=True, stop_token_ids=[2])
    (pair,) = dataset
    assert smollm2.decode(pair.chosen.ids) == "It is good.<|im_end|>"
    assert smollm2.decode(pair.prompt_ids).endswith(
        "Is it good?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (pair.chosen_score, pair.rejected_score, pair.meta) == (2.0, 1.0, {"raters_agree": 9})
    assert (dataset.end_token_id, dataset.pad_token_id) == (2, 2)
    assert (dataset.stats.pairs, dataset.stats.ties_dropped) == (1, 1)


def test_where_the_file_lies_does_not_matter(
    write_jsonl: Callable[..., Path], tmp_path: Path, llama3: Any
) -> None:
    path = write_jsonl(ROWS)
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes(path.read_bytes())
    assert build_dataset(path, llama3).fingerprint == build_dataset(moved, llama3).fingerprint


def test_no_pair_left(write_jsonl: Callable[..., Path], llama3: Any) -> None:
    rows = [{"prompt": "It", "chosen": " a b c d e f", "rejected": " a b c d e a"}]
    with pytest.raises(UserError, match=r"no pair is left \(1 became identical"):
        build_dataset(write_jsonl(rows), llama3, max_length=5)


def test_prepared_round_trip(write_jsonl: Callable[..., Path], tmp_path: Path, llama3: Any) -> None:
    path = write_jsonl(ROWS)
    dataset = build_dataset(path, llama3, max_length=32)
    target = save_prepared(dataset, tmp_path / "prepared")
    assert is_prepared(target) and not is_prepared(tmp_path)
    assert {file.suffix for file in target.iterdir()} == {".safetensors", ".json", ".jsonl"}
    loaded = load_prepared(target)
    assert list(loaded) == list(dataset)
    assert (loaded.fingerprint, loaded.stats) == (dataset.fingerprint, dataset.stats)
    # The same entry point reads it, and saving again replaces it.
    llama3("a b c", truncation=True, max_length=2)  # leaves no trace in the settings
    assert build_dataset(target, llama3, max_length=32).fingerprint == dataset.fingerprint
    before = (target / "manifest.json").stat().st_ino
    save_prepared(dataset, target)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["pairs.jsonl", "prepared"]
    # The same to the byte stays where it is; something else takes its place.
    assert (target / "manifest.json").stat().st_ino == before
    other = build_dataset(path, llama3, max_length=16)
    save_prepared(other, target)
    assert (target / "manifest.json").stat().st_ino != before
    assert load_prepared(target).settings == other.settings
    assert sorted(item.name for item in tmp_path.iterdir()) == ["pairs.jsonl", "prepared"]


def test_prepared_with_other_settings_is_refused(
    write_jsonl: Callable[..., Path], tmp_path: Path, llama3: Any, gemma: Any
) -> None:
    target = save_prepared(build_dataset(write_jsonl(ROWS), llama3), tmp_path / "prepared")
    with pytest.raises(UserError, match=r"\(max_length None instead of 16\); run `nemo-gdpo prep"):
        build_dataset(target, llama3, max_length=16)
    with pytest.raises(UserError, match=r"chat_template .* tokenizer "):
        build_dataset(target, gemma)


def test_damaged_or_foreign_directories_are_refused(tmp_path: Path) -> None:
    target = save_prepared(make(PAIRS), tmp_path / "prepared")
    pairs, manifest = target / "pairs.jsonl", target / "manifest.json"
    lines = pairs.read_text()
    pairs.write_text(lines.replace('"id": "a"', '"id": "z"'))
    with pytest.raises(UserError, match="does not match its fingerprint"):
        load_prepared(target)
    pairs.write_text(lines.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="differ in length"):
        load_prepared(target)
    pairs.write_text(lines)
    tensors = (target / "pairs.safetensors").read_bytes()
    (target / "pairs.safetensors").write_bytes(tensors[:-8])
    with pytest.raises(UserError, match="damaged"):
        load_prepared(target)
    manifest.write_text(json.dumps({"kind": "something else"}))
    with pytest.raises(UserError, match="not the manifest of a prepared data set"):
        load_prepared(target)
    manifest.unlink()
    with pytest.raises(UserError, match="not a prepared data set; make one"):
        load_prepared(target)


def test_saving_never_overwrites_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists and is not a prepared data set"):
        save_prepared(make(PAIRS), tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"
