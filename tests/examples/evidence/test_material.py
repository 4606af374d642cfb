"""Pairs, labels and prompts by hand, and pairs sampled from a model that knows two sentences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from examples.film_reviews.evidence import material
from examples.film_reviews.evidence.material import (
    labelled,
    openings,
    write_pairs,
    write_selected,
)
from examples.film_reviews.evidence.measure import Vectors
from examples.film_reviews.evidence.sampling import CausalLM, Response
from examples.film_reviews.evidence.settings import QUICK
from nemo_gdpo.errors import UserError

PROMPTS = [f"film {n}" for n in range(40)]
TEXTS = (" is wonderful .", " is terrible .", " is long .", " is good .")


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    """Draws of four sentences: the model itself is tested elsewhere."""

    def sample(
        lm: CausalLM, prompts: list[str], responses: int, *, seed: int, **rest: object
    ) -> list[list[Response]]:
        random = np.random.default_rng(seed)
        return [
            [Response(TEXTS[random.integers(4)], (1, 0), True) for _ in range(responses)]
            for _ in prompts
        ]

    monkeypatch.setattr(material, "sample", sample)
    return None  # type: ignore[return-value]


def encode(texts: list[str]) -> Vectors:
    return np.eye(4, dtype=np.float32)[[TEXTS.index(text) for text in texts]]


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bradley_terry() -> None:
    """A difference of one temperature: preferred with probability 1 / (1 + 1/e) = 0.731."""
    assert labelled(0.5, 0.25, 0.25, 0.73) and not labelled(0.5, 0.25, 0.25, 0.732)
    assert labelled(0.0, 0.0, 0.25, 0.499) and not labelled(0.0, 0.0, 0.25, 0.501)
    draws = np.random.default_rng(0).random(20000)
    share = np.mean([labelled(0.1, 0.6, 0.25, draw) for draw in draws])
    assert share == pytest.approx(1 / (1 + math.exp(2)), abs=0.01)


def test_openings_are_of_sentences_that_go_on() -> None:
    texts = ["a b c d e f g", "a b c x y z w v", "one two three four", "d e f g h i j"]
    assert openings(texts, 3) == ["a b c", "d e f"]


def test_pairs_keep_scores_and_labels(lm: CausalLM, tmp_path: Path) -> None:
    counts = write_pairs(lm, PROMPTS, tmp_path, QUICK, 1)
    rows = rows_of(tmp_path / "train.jsonl")
    assert len(rows) == QUICK.pairs
    assert len(rows_of(tmp_path / "validation.jsonl")) == QUICK.validation
    assert counts.ties > 0 and counts.pairs == QUICK.pairs + QUICK.validation
    for row in rows:
        gap = abs(float(str(row["chosen_reward"])) - float(str(row["rejected_reward"])))
        assert gap > 0
        assert row["chosen_score"] == pytest.approx(QUICK.score_scale * gap, abs=1e-4)
        assert row["rejected_score"] == 0.0
    # Nobody prefers "terrible" to "wonderful" at this temperature, 1.1 apart.
    against = [row for row in rows if row["chosen"] == TEXTS[1]]
    assert not against
    # The same responses one by one, in the same order.
    single = rows_of(tmp_path / "unpaired.jsonl")
    assert [row["response"] for row in single[:2]] == [rows[0]["chosen"], rows[0]["rejected"]]
    assert [row["label"] for row in single] == [True, False] * QUICK.pairs


def test_a_seed_draws_its_own_pairs(lm: CausalLM, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_pairs(lm, PROMPTS, tmp_path / name, QUICK, seed)
    texts = [(tmp_path / name / "train.jsonl").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_a_model_that_never_ends_is_refused(
    lm: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        material,
        "sample",
        lambda lm, prompts, n, **rest: [[Response(" x", (1,), False)] * n for _ in prompts],
    )
    with pytest.raises(UserError, match=r"0 of .* the writer needs more training or more tokens"):
        write_pairs(lm, PROMPTS, tmp_path, QUICK, 1)


def test_selected_pairs(lm: CausalLM, tmp_path: Path) -> None:
    """DivPO's chosen ones are better; REDIPO's are as good, within 0.1."""
    write_selected(lm, encode, PROMPTS, tmp_path, QUICK, 1)
    divpo, redipo = (rows_of(tmp_path / f"{name}.jsonl") for name in ("divpo", "redipo"))
    assert divpo
    assert all(float(str(r["chosen_reward"])) > float(str(r["rejected_reward"])) for r in divpo)
    for row in redipo:
        gap = float(str(row["chosen_reward"])) - float(str(row["rejected_reward"]))
        assert abs(gap) <= 0.1
