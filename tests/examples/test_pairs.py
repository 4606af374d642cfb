"""The demo's pairs, from an archive of the real one's shape."""

from __future__ import annotations

import io
import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.film_reviews.pairs import INSTRUCTIONS, Pairing, write_pairs
from examples.film_reviews.snippets import clean_text, read_snippets
from nemo_gdpo.data import read_pairs
from nemo_gdpo.errors import UserError

RATINGS = [[2, 3, 1], [-1, -2, 0], [4, 3, 4, 1], [0, 0, 0], [-3, -4, -2], [1, -1, 0]]


def table_rows(count: int) -> tuple[list[str], list[str]]:
    texts, ratings = [], []
    for index in range(count):
        values = RATINGS[index % len(RATINGS)]
        mean = sum(values) / len(values)
        texts.append(f"{index + 1}\t{mean:.11f}\tSnippet number {index + 1} of a review.")
        ratings.append(f"{index + 1}\t{mean:.9f}\t0.5\t{values}")
    return texts, ratings


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sdist(tmp_path: Path, texts: list[str], ratings: list[str]) -> Path:
    folder = "hutto_ICWSM_2014"
    inner = {
        f"{folder}/movieReviewSnippets_GroundTruth.txt": "\r\n".join(texts).encode(),
        f"{folder}/movieReviewSnippets_anonDataRatings.txt": "\r\n".join(ratings).encode(),
        "../../escaped.txt": b"must not be written",
    }
    outer = {f"vaderSentiment-3.3.2/additional_resources/{folder}.tar.gz": archive(inner)}
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    path.write_bytes(archive(outer))
    return path


def pairing(**changes: Any) -> Pairing:
    """All pairs there are, without thresholds, but for `changes`."""
    plain = Pairing(
        seed=1, num_train=None, num_validation=None, chosen_min=None, rejected_max=None, min_gap=0.0
    )
    return replace(plain, **changes)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_splits_and_counts(tmp_path: Path) -> None:
    source = sdist(tmp_path, *table_rows(300))
    out = tmp_path / "out"
    stats = write_pairs(source, out, pairing(seed=3, validation_fraction=0.3))
    snippets = {snippet.number: snippet for snippet in read_snippets(source)}
    used: dict[str, set[int]] = {"train": set(), "validation": set()}
    for split, numbers in used.items():
        got = rows(out / f"{split}.jsonl")
        counts = stats[split]
        assert len(got) == counts["pairs"] == counts["pairs_available"] > 20
        assert counts["ties_dropped"] > 0
        # Each snippet is used at most once; at most one is left without a partner.
        assert counts["snippets"] - 2 * (counts["pairs"] + counts["ties_dropped"]) in (0, 1)
        for row in got:
            chosen, rejected = (snippets[number] for number in row["snippets"])
            assert row["chosen"] == [{"role": "assistant", "content": chosen.text}]
            assert (row["chosen_score"], row["rejected_score"]) == (chosen.mean, rejected.mean)
            assert chosen.mean > rejected.mean
            assert row["prompt"][0]["content"] in INSTRUCTIONS
            middle = (chosen.mean + rejected.mean) / 2
            above = sum(rating > middle for rating in chosen.ratings)
            below = sum(rating < middle for rating in rejected.ratings)
            assert row["raters_agree"] == above + below
            assert row["raters_total"] == len(chosen.ratings) + len(rejected.ratings)
            numbers.update(row["snippets"])
        assert len(numbers) == 2 * len(got)
    assert not used["train"] & used["validation"]
    assert stats["train"]["snippets"] + stats["validation"]["snippets"] == 300
    assert json.loads((out / "stats.json").read_text()) == stats
    prompts = rows(out / "prompts.jsonl")
    assert [row["prompt"][0]["content"] for row in prompts] == list(INSTRUCTIONS)
    assert len({row["id"] for row in prompts}) == len(INSTRUCTIONS)
    assert (
        not list(tmp_path.rglob("escaped.txt")) and not (tmp_path.parent / "escaped.txt").exists()
    )
    pairs = list(read_pairs(out / "train.jsonl", format="trl", require_scores=True))
    assert len(pairs) == stats["train"]["pairs"] and pairs[0].id == "train-0"
    # `data=jsonl`, which the demo trains with, looks at the first row.
    assert list(read_pairs(out / "train.jsonl", require_scores=True)) == pairs
    assert set(pairs[0].meta) == {"raters_agree", "raters_total", "snippets"}


def test_seeds_decide_and_counts_limit(tmp_path: Path) -> None:
    source = sdist(tmp_path, *table_rows(200))

    def written(name: str, **arguments: Any) -> tuple[str, str]:
        out = tmp_path / name
        write_pairs(source, out, pairing(**arguments))
        return (out / "train.jsonl").read_text(), (out / "validation.jsonl").read_text()

    first = written("a", seed=1)
    assert written("b", seed=1) == first
    assert written("c", seed=2) != first
    train, validation = written("d", seed=1, num_train=5, num_validation=2)
    assert first[0].startswith(train) and train.count("\n") == 5
    assert first[1].startswith(validation) and validation.count("\n") == 2
    with pytest.raises(UserError, match=r"500 train pairs asked for, \d+ exist"):
        written("e", seed=1, num_train=500)


def test_thresholds_and_gaps(tmp_path: Path) -> None:
    source = sdist(tmp_path, *table_rows(300))
    out = tmp_path / "out"
    write_pairs(source, out, pairing(chosen_min=1.0, rejected_max=-0.5))
    scores = [(r["chosen_score"], r["rejected_score"]) for r in rows(out / "train.jsonl")]
    assert {chosen for chosen, _ in scores} == {2.0, 3.0}
    assert {rejected for _, rejected in scores} == {-1.0, -3.0}
    stats = write_pairs(source, out, pairing(min_gap=4.5))
    assert all(
        row["chosen_score"] - row["rejected_score"] >= 4.5 for row in rows(out / "train.jsonl")
    )
    assert stats["train"]["below_min_gap"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1, "validation_fraction": 1.0}, "between 0 and 1"),
        ({"seed": 1, "chosen_min": 1.0}, "give both or neither"),
        ({"seed": 1, "chosen_min": 0.0, "rejected_max": 0.0}, "must be greater than"),
        ({"seed": 1, "min_gap": 9.0}, "must lie in 0 to 8"),
        ({"num_train": 0}, "num_train=0: not a number of pairs; give 1 or more, or none"),
        ({"num_validation": -1}, "num_validation=-1: not a number of pairs"),
        ({"chosen_min": 4.5, "rejected_max": 0.0}, "chosen_min=4.5: ratings go from -4 to 4"),
        ({"chosen_min": 0.0, "rejected_max": -4.5}, "rejected_max=-4.5: ratings go from -4 to 4"),
        ({"chosen_min": math.nan, "rejected_max": 0.0}, "chosen_min=nan: ratings go from -4"),
    ],
)
def test_arguments_out_of_range(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairing(**arguments)


def test_duplicates_count_once(tmp_path: Path) -> None:
    texts, ratings = table_rows(60)
    texts[7] = texts[7].split("\tSnippet")[0] + "\tSNIPPET  number 1 of a review."
    stats = write_pairs(sdist(tmp_path, texts, ratings), tmp_path / "out", pairing())
    assert (stats["duplicates_dropped"], stats["snippets"]) == (1, 59)
    written = "".join(
        (tmp_path / "out" / f"{s}.jsonl").read_text() for s in ("train", "validation")
    )
    assert "SNIPPET" not in written


def test_a_missing_package_names_the_command(tmp_path: Path) -> None:
    command = "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d"
    with pytest.raises(UserError, match=command):
        write_pairs(tmp_path / "gone.tar.gz", tmp_path / "out", pairing())


def test_a_damaged_package(tmp_path: Path) -> None:
    path = tmp_path / "vader.tar.gz"
    path.write_bytes(b"not an archive")
    with pytest.raises(UserError, match="not the vaderSentiment source package"):
        read_snippets(path)
    path.write_bytes(archive({"vaderSentiment-3.3.2/README": b"x"}))
    with pytest.raises(UserError, match="holds no additional_resources"):
        read_snippets(path)
    name = "v/additional_resources/hutto_ICWSM_2014.tar.gz"
    path.write_bytes(archive({name: archive({"other.txt": b"x"})}))
    with pytest.raises(UserError, match="not the vaderSentiment source package"):
        read_snippets(path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("texts", "2\t-1.0", "snippet 2: the columns are not"),
        ("texts", "9\t-1.0\tx", "snippet 2: the columns are not"),
        ("texts", "2\tbad\tx", "snippet 2: a number does not read"),
        ("ratings", "2\t-1.0\t0\t[5, -7]", "snippet 2: ratings must be whole numbers from -4"),
        ("ratings", "2\t-1.0\t0\t[1, 1]", "snippet 2: its ratings average 1, its mean says -1"),
    ],
)
def test_tables_of_another_shape(tmp_path: Path, column: str, value: str, message: str) -> None:
    texts, ratings = table_rows(4)
    (texts if column == "texts" else ratings)[1] = value
    with pytest.raises(UserError, match=message):
        read_snippets(sdist(tmp_path, texts, ratings))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a \t b ", "a b"),
        ("Lilo &amp; Stitch isn't", "Lilo & Stitch isn't"),
        ("''Frailty'' is ''so'' good", '"Frailty" is "so" good'),
        ("songs    a few hits    and more", "songs - a few hits - and more"),
        ("co  writer", "co writer"),
        ("'It's good.'", "It's good."),
        ("'Charly' and 'They'", "'Charly' and 'They'"),
        ("cliche\u0301s", "clichés"),
    ],
)
def test_cleaning(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean
