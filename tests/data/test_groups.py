"""Rows of several answers to one prompt: `data.format=groups`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.data.types import RawPair
from nemo_gdpo.errors import UserError
from tests.support.data import write_jsonl

ROW: dict[str, Any] = {
    "id": "q", "prompt": "A film:", "responses": ["good", "bad", "good", "dull"],
    "scores": [1, -2.5, 1.0, 0.0], "round": 3,
}  # fmt: skip


def read(path: Path, *rows: Any, size: int | None = 4) -> list[RawPair]:
    file = write_jsonl(path / "groups.jsonl", rows)
    return list(
        read_pairs(file, format="groups", require_scores=True, columns=PairColumns(group_size=size))
    )


def test_two_answers_at_a_time(tmp_path: Path) -> None:
    """In their order, equal ones and lower scores in front as well, and other columns as meta."""
    first, second = read(tmp_path, ROW)
    assert (first.id, second.id) == ("q#0", "q#2")
    assert (first.chosen, first.rejected) == ("good", "bad")
    assert (second.chosen, second.rejected) == ("good", "dull")
    assert [first.chosen_score, first.rejected_score] == [1.0, -2.5]
    assert first.meta == {"round": 3}
    same = read(tmp_path, ROW | {"responses": ["a", "a", "b", "c"], "scores": [0, 0, 1, 2]})
    assert [pair.chosen for pair in same] == ["a", "b"]


def test_answers_as_messages(tmp_path: Path) -> None:
    said = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    asked = [{"role": "user", "content": "which?"}]
    (pair,) = read(tmp_path, {"prompt": asked, "responses": said, "scores": [0.5, 1.5]}, size=2)
    assert (pair.id, pair.prompt, pair.chosen) == ("1#0", asked, said[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": [1, 2, 3]}, "line 2: 4 responses and 3 scores"),
        ({"responses": ["a", "b"], "scores": [1, 2]}, "line 2: 2 responses, and data.group_size"),
        ({"responses": "good"}, "line 2: 'responses' is not a list"),
        ({"scores": [1, 2, None, 3]}, r"line 2, scores\[2\]: is null"),
        ({"scores": [1, 2, float("inf"), 3]}, "Infinity is no JSON|must be finite"),
        ({"scores": [1, "2", 3, 4]}, r"scores\[1\]: 'score' is "),
        ({"responses": ["a", " ", "b", "c"]}, "empty response"),
        ({"responses": ["a", 3, "b", "c"]}, "line 2"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, ROW, ROW | {"id": "other"} | change)
