"""`nemo-gdpo pairs`, from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.pairs import PAIRS, PairsConfig
from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.errors import UserError
from nemo_gdpo.pairing import cli

POINT = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0}


def row(name: str, outputs: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": name, "prompt": f"say {name}: ", "model_hash": "m", "sampling": POINT,
        "outputs": outputs, "finish_reasons": ["stop"] * len(outputs),
    } | more  # fmt: skip


GOOD, BAD = "A wonderful, great film.", "A horrible, bad film."


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rows = [
        row("b", [GOOD, BAD, "A film.", GOOD], scores=[2.0, -1.0, 0.5, 2.0]),
        row("a", [BAD, GOOD, "A", " "], scores=[0.0, 1.0, 9.0, 9.0],
            finish_reasons=["stop", "stop", "length", "stop"]),
        row("c", ["A film.", "A film."], scores=[1.0, 0.0]),
        row("d", ["one", "two"], scores=[1.0, 1.0]),
    ]  # fmt: skip
    directory = tmp_path / "samples"
    directory.mkdir()
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (directory / "generations-00000.jsonl").write_text(text)
    return directory


def config_of(samples: Path, **pairs: Any) -> PairsConfig:
    output = str(samples.parent / "out")
    plain = {"output_dir": output, "pairs": {"generations": str(samples), **pairs}}
    return PAIRS.parse(plain)


def run(config: PairsConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    raise_problems(cli.problems(config))
    assert cli._run(config) == 0
    output = Path(config.output_dir)
    rows = [json.loads(line) for line in (output / "pairs.jsonl").read_text().splitlines()]
    return rows, json.loads((output / "stats.json").read_text())


def test_pairs_by_a_column_of_scores_are_read_by_odpo(samples: Path) -> None:
    rows, stats = run(config_of(samples, score_column="scores"))
    assert rows == [
        {"id": "a", "prompt": "say a: ", "chosen": GOOD, "rejected": BAD,
         "chosen_score": 1.0, "rejected_score": 0.0},
        {"id": "b", "prompt": "say b: ", "chosen": GOOD, "rejected": BAD,
         "chosen_score": 2.0, "rejected_score": -1.0},
    ]  # fmt: skip
    assert (stats["prompts"], stats["pairs"]) == (4, 2)
    assert stats["prompts_without_a_pair"] == {
        "fewer than two different answers": 1,
        "no two scores are far enough apart": 1,
    }
    assert stats["answers_left_out"] == {
        "cut, without an end": 1, "empty": 1, "said before": 2,
    }  # fmt: skip
    path = samples.parent / "out" / "pairs.jsonl"
    assert len(list(read_pairs(path, require_scores=True))) == 2


def test_the_same_command_writes_the_same_bytes(samples: Path) -> None:
    path = samples.parent / "out" / "pairs.jsonl"
    run(config_of(samples, score_column="scores"))
    before = path.read_bytes()
    (samples / "generations-00000.jsonl").write_text(
        "".join(reversed((samples / "generations-00000.jsonl").read_text().splitlines(True)))
    )
    run(config_of(samples, score_column="scores"))
    assert path.read_bytes() == before


def test_a_reward_scores_them(samples: Path) -> None:
    rows, _ = run(config_of(samples, rewards=["vader"]))
    by_id = {one["id"]: one for one in rows}
    assert by_id["b"]["chosen"] == GOOD and by_id["b"]["rejected"] == BAD
    assert by_id["b"]["chosen_score"] > 0.5 > -0.5 > by_id["b"]["rejected_score"]


def scores_file(samples: Path, rows: list[dict[str, Any]]) -> str:
    path = samples.parent / "scores.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


FILE = [
    {"id": "a", "scores": [3, 0, 0, 0]}, {"id": "b", "scores": [0, 4, 1, 0]},
    {"id": "c", "scores": [1, 0]}, {"id": "d", "scores": [1, 2]},
]  # fmt: skip


def test_a_file_scores_them(samples: Path) -> None:
    rows, _ = run(config_of(samples, scores_path=scores_file(samples, FILE)))
    assert [(one["id"], one["chosen"], one["rejected"]) for one in rows] == [
        ("a", BAD, GOOD), ("b", BAD, GOOD), ("d", "two", "one"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (FILE[:3], "no scores for 'd'"),
        ([*FILE, {"id": "e", "scores": [1]}], "line 5: no row of the generations has id 'e'"),
        ([*FILE, FILE[0]], "line 5: the same id as"),
        ([*FILE[:3], {"id": "d", "scores": [1]}], "line 4: 'scores' has 1 for 2 outputs"),
        ([*FILE[:3], {"id": "d", "scores": [1, True]}], "line 4: 'scores' holds True"),
        ([*FILE[:3], {"id": "d", "scores": [1, 1e999]}], "line 4: 'scores' holds inf"),
        ([{"scores": [1]}], "line 1: id is missing"),
    ],
)
def test_a_file_that_does_not_fit(samples: Path, change: list[dict[str, Any]], said: str) -> None:
    config = config_of(samples, scores_path=scores_file(samples, change))
    with pytest.raises(UserError) as refused:
        run(config)
    assert said in str(refused.value)
    assert not (samples.parent / "out" / "pairs.jsonl").exists()


def test_log_probs_are_rare_where_they_are_small(samples: Path) -> None:
    """Means a token: GOOD -1, the film -3, so that the film is rarer; BAD is the only bad one."""
    outputs = [GOOD, "A film.", BAD]
    one = row("a", outputs, scores=[1.0, 0.9, 0.0], token_ids=[[1, 2], [1], [1]],
              cumulative_logprobs=[-2.0, -3.0, -1.0])  # fmt: skip
    (samples / "generations-00000.jsonl").write_text(json.dumps(one) + "\n")
    settings = {"method": "divpo", "threshold": 0.5, "score_column": "scores"}
    rows, _ = run(config_of(samples, rarity="log_prob", **settings))
    assert (rows[0]["chosen"], rows[0]["rejected"]) == ("A film.", BAD)
    del one["cumulative_logprobs"]
    (samples / "generations-00000.jsonl").write_text(json.dumps(one) + "\n")
    with pytest.raises(UserError, match="line 1: no cumulative_logprobs"):
        run(config_of(samples, rarity="log_prob", **settings))


def test_redipo_by_embeddings_is_no_data_for_odpo(samples: Path) -> None:
    outputs = ["I love cats.", "I love cats!", "The stock market fell by nine points."]
    one = row("a", outputs, scores=[0.55, 0.52, 0.5])
    (samples / "generations-00000.jsonl").write_text(json.dumps(one) + "\n")
    rows, _ = run(config_of(samples, method="redipo", score_column="scores"))
    assert rows[0]["chosen"] == outputs[2] and rows[0]["rejected"] in outputs[:2]
    assert rows[0]["score_of_chosen"] == 0.5 and "chosen_score" not in rows[0]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ({}, "pairs.rewards: scores come from one source, and nothing gives them"),
        ({"rewards": ["vader"], "score_column": "s"}, "pairs.score_column, pairs.rewards gives"),
        ({"rewards": ["vader"], "similar": 0.5}, "pairs.similar: nothing reads it"),
        ({"rewards": ["vader"], "generations": None}, "pairs.generations: is not set"),
        ({"rewards": ["vader"], "method": "redipo", "share": 0.1}, "pairs.share: nothing reads it"),
    ],
)
def test_settings_that_cannot_be_honoured(samples: Path, pairs: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        run(config_of(samples, **pairs))
    assert said in str(refused.value)


def test_no_pair_at_all_writes_nothing(samples: Path) -> None:
    with pytest.raises(UserError, match="no prompt of 4 gives a pair"):
        run(config_of(samples, score_column="scores", min_gap=50.0))
    assert not (samples.parent / "out" / "pairs.jsonl").exists()
