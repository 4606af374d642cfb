"""What is refused, in one line each: settings before the first stage, lines of files later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.rounds import GroupsConfig, GroupsSection, ScoreConfig, ScoreSection
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.rounds.checks import problems
from nemo_gdpo.rounds.groups import make_groups
from nemo_gdpo.rounds.score import score
from tests.support.data import write_jsonl

from .stand_in import config_of

DPO = ["objective=dpo", "data.group_size=null"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["rounds.prompts_path=null"], "rounds.prompts_path: is not set"),
        (["rounds.prompts_path=/none.jsonl"], "rounds.prompts_path: /none.jsonl is not a file"),
        (["data.train_path=x.jsonl"], "data.train_path: is x.jsonl, and every round makes"),
        (["data.format=groups"], "data.format: is set"),
        (["data.group_size=null"], "data.group_size: is not set, and a prompt has 8 answers"),
        (["data.group_size=10"], "data.group_size: 10 answers make a group, and a prompt has 8"),
        (["rounds.rewards=[]"], "rounds.rewards: is empty, and there are no constraints"),
        (["rounds.rewards=[vader,vader]"], "rounds.rewards: names 2 rewards"),
        (["pairs.method=divpo"], "pairs.method: nothing reads it with objective=gflownet"),
        (["rounds.reference=previous"], "rounds.reference: previous would put another reward"),
        (["reference_model=/x"], "reference_model: is set, and rounds.reference says"),
        (["reference=resident"], "reference: resident keeps what a round starts from"),
        (["export_hf=false"], "export_hf: is false, and the next round begins"),
        (["generation.backend=server"], "generation.backend: server goes on serving"),
        (["rounds.replay.share=0.5", "rounds.replay.size=0"], "rounds.replay.share: is above 0"),
        (["rounds.replay.cluster_share=0.5"], "rounds.replay.cluster_share: is below 1, and there"),
        (["rounds.number=1", "rounds.staleness=1"], "rounds.staleness: is 1, and a single round"),
        (["constraints.max_words=1", "constraints.min_words=2"], "constraints.min_words: 2 is"),
        (["lora.rank=4", "lora.export_peft=false"], "lora.export_peft: is false"),
        ([*DPO, "rounds.replay.share=0.5"], "rounds.replay: is set, and only the groups"),
        ([*DPO, "rounds.reward_temperature_end=0.8"], "rounds.reward_temperature_end: nothing"),
        ([*DPO, "objective=odpo", "pairs.method=redipo"], "pairs.method: redipo's chosen answers"),
        ([*DPO, "pairs.similar=0.5"], "pairs.similar: nothing reads it"),
        ([*DPO, "pairs.method=divpo", "pairs.rarity=log_prob"], "pairs.rarity: log_prob reads"),
        (
            [*DPO, "lora.rank=4", "reference=adapter_off", "rounds.reference=previous"],
            "reference: adapter_off is the first model",
        ),
    ],
)
def test_settings(tmp_path: Path, more: list[str], said: str) -> None:
    told = [str(problem) for problem in problems(config_of(tmp_path, *more))]
    assert any(one.startswith(said) for one in told), told


# --- samples -----------------------------------------------------------------------------------


def row(outputs: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "prompt": "x",
        "sampling": {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0},
        "outputs": outputs,
        "finish_reasons": ["stop"] * len(outputs),
        "model_hash": "m",
        **more,
    }


OTHER: dict[str, Any] = {
    "prompt": "y", "broken": [[]], "constraints_met": [True],
    "sampling": {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 2},
}  # fmt: skip
"""The same id at another point, with another prompt."""


def scored(tmp_path: Path, rows: list[Any], **section: Any) -> list[dict[str, Any]]:
    samples = tmp_path / "samples"
    samples.mkdir(exist_ok=True)
    write_jsonl(samples / "generations-00000.jsonl", rows)
    constraints = section.pop("constraints", {})
    config = ScoreConfig(
        output_dir=str(tmp_path / "scored"),
        score=ScoreSection(samples=str(samples), encoder=None, **section),
        constraints=constraints,
    )
    with Cache(tmp_path / "cache.sqlite") as cache:
        score(config, cache)
    lines = (tmp_path / "scored/answers.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_scores_by_hand(tmp_path: Path) -> None:
    """VADER aside, an answer that breaks a constraint has the floor, in the reward's units: -10
    nats at 2 a nat is -20. What is cut or empty has no score."""
    one = row(["fine", "dull", "cut", " "], broken=[[], ["forbidden.dull"], [], []],
              constraints_met=[True, False, True, True])  # fmt: skip
    one["finish_reasons"] = ["stop", "stop", "length", "stop"]
    (line,) = scored(tmp_path, [one], nats=2.0, constraints={"forbidden": ["dull"]})
    assert [answer["score"] for answer in line["answers"]] == [0.0, -20.0, None, None]
    assert [answer["complete"] for answer in line["answers"]] == [True, True, False, False]
    metrics = json.loads((tmp_path / "scored/metrics.json").read_text())
    assert metrics["met"] == metrics["met/forbidden.dull"] == 0.75 and metrics["complete"] == 0.5
    assert metrics["score"] == -10.0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no complete row yet"),
        (["{"], "line 1: damaged"),
        ([row([])], "line 1: outputs is not a list"),
        ([row(["a"], cumulative_logprobs=["x"])], "line 1: cumulative_logprobs are not numbers"),
        ([row(["a"], broken=[[]], constraints_met=[True]), row(["a"], **OTHER)],
         "another prompt than in"),
        ([row(["a"])], "has no verdicts"),
        ([row(["a"], broken=[["regex"]], constraints_met=[False])], "breaks 'regex'"),
        ([row(["a", "b"], broken=[["max_words"]] * 2, constraints_met=[False] * 2)],
         "constraints.max_words: none of the 2 samples of the first round met it"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_scored(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        scored(tmp_path, rows, constraints={"max_words": 3})
    assert not (tmp_path / "scored").exists()


def test_a_later_round_may_meet_no_constraint(tmp_path: Path) -> None:
    one = row(["a"], broken=[["max_words"]], constraints_met=[False])
    (line,) = scored(tmp_path, [one], round=2, constraints={"max_words": 3})
    assert line["answers"][0]["score"] == -10.0


# --- scored answers ----------------------------------------------------------------------------

ANSWER = {
    "text": "a", "complete": True, "score": 1.0, "reward": 1.0, "broken": [], "log_prob": None,
    "tokens": None, "temperature": 1.0,
}  # fmt: skip
LINE = {"id": "p", "prompt": "x", "round": 1, "staleness": 0, "answers": [ANSWER] * 4}


def grouped(tmp_path: Path, lines: list[Any], *, now: int = 1) -> None:
    place = tmp_path / "round"
    place.mkdir(exist_ok=True)
    write_jsonl(place / "answers.jsonl", lines)
    section = GroupsSection(scored=(str(place),), round=now)
    with Cache(tmp_path / "cache.sqlite") as cache:
        make_groups(GroupsConfig(output_dir=str(tmp_path / "out"), groups=section), cache)


@pytest.mark.parametrize(
    ("lines", "now", "said"),
    [
        ([LINE, LINE], 1, "line 2: the same id as"),
        ([LINE | {"round": "1"}], 1, "line 1: id, prompt, round"),
        ([LINE | {"answers": [ANSWER | {"score": None}]}], 1, "line 1: an answer's values"),
        ([LINE | {"answers": [ANSWER | {"score": True}]}], 1, "line 1: an answer's values"),
        ([LINE | {"answers": [{"text": "a"}]}], 1, "line 1: an answer does not hold exactly"),
        ([LINE], 2, r"holds the rounds \[\[1\]\], and groups.round is 2"),
        ([LINE | {"answers": [ANSWER] * 3}], 1, "no prompt of 1 gives a group"),
    ],
)
def test_scored_answers_that_make_no_groups(
    tmp_path: Path, lines: list[Any], now: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        grouped(tmp_path, lines, now=now)
    assert not (tmp_path / "out").exists()


def test_no_scored_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"answers\.jsonl does not exist; score"):
        section = GroupsSection(scored=(str(tmp_path),))
        with Cache(tmp_path / "cache.sqlite") as cache:
            make_groups(GroupsConfig(output_dir=str(tmp_path / "out"), groups=section), cache)
