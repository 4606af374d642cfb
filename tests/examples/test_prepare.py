"""The command that writes the pairs: its defaults, reuse, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.film_reviews.prepare import main
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from tests.examples.test_pairs import sdist, table_rows

NAMES = ["prompts.jsonl", "request.json", "stats.json", "train.jsonl", "validation.jsonl"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sdist(tmp_path, *table_rows(300))


def prepared(source: Path, directory: Path, *more: str) -> int:
    counts = ["--num-train", "8", "--num-validation", "2", "--validation-fraction", "0.3"]
    return main(["--source", str(source), "--output-dir", str(directory), *counts, *more])


def test_the_demos_pairs_and_their_reuse(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "data"
    assert prepared(source, directory) == 0
    assert sorted(path.name for path in directory.iterdir()) == NAMES
    rows = [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(row["chosen_score"] >= 1.0 and row["rejected_score"] <= -0.5 for row in rows)
    assert json.loads((directory / "request.json").read_text()) == {
        "source_path": "vaderSentiment-3.3.2.tar.gz",
        "seed": 1234,
        "num_train": 8,
        "num_validation": 2,
        "validation_fraction": 0.3,
        "chosen_min": 1.0,
        "rejected_max": -0.5,
        "min_gap": 1.5,
    }
    capsys.readouterr()
    before = (directory / "train.jsonl").stat().st_mtime_ns
    assert prepared(source, directory) == 0
    assert capsys.readouterr().out == f"film reviews: reused {directory}\n"
    assert (directory / "train.jsonl").stat().st_mtime_ns == before
    # Other arguments: written again.
    assert prepared(source, directory, "--seed", "5") == 0
    assert (directory / "train.jsonl").stat().st_mtime_ns > before


def test_none_lifts_counts_and_thresholds(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    free = ["--chosen-min", "none", "--rejected-max", "none", "--num-train", "none"]
    assert prepared(source, directory, *free) == 0
    stats = json.loads((directory / "stats.json").read_text())
    assert stats["chosen_min"] is None and stats["rejected_max"] is None
    assert stats["train"]["pairs"] == stats["train"]["pairs_available"] > 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-train", "0"], "num_train=0: not a number of pairs; give 1 or more, or none"),
        (["--chosen-min", "none"], "chosen_min and rejected_max: only one is set; give both"),
        (["--chosen-min", "-1"], "chosen_min=-1.0: it must be greater than rejected_max=-0.5; "),
        (["--num-train", "500"], "500 train pairs asked for, "),
        (["--source", "gone.tar.gz"], "gone.tar.gz does not exist; fetch it with `pip "),
    ],
)
def test_mistakes_are_one_line(
    source: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "data"
    assert prepared(source, directory, *arguments) == 2
    assert not (directory / "train.jsonl").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prepare: error: ") and message in line


def test_a_text_that_is_not_a_number(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prepared(source, tmp_path / "data", "--min-gap", "wide")
    assert ended.value.code == 2
    assert "argument --min-gap: invalid float value: 'wide'" in capsys.readouterr().err


def test_the_demos_configuration_reads_where_the_command_writes() -> None:
    """And has the lengths and the order that its figures were measured with."""
    data = TRAIN.parse(compose(["experiment=demo"], TRAIN).plain).data
    assert data.reader_format == "auto"
    assert (data.train_path, data.validation_path) == (
        "runs/demo/data/train.jsonl",
        "runs/demo/data/validation.jsonl",
    )
    assert (data.max_prompt_length, data.max_length, data.truncation_mode) == (128, 256, "error")
    assert (data.seed, data.packing, data.on_bad_pair) == (1234, True, "error")
