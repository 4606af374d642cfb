"""What is kept of earlier answers, and groups, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nemo_gdpo.config.rounds import GroupsConfig, GroupsSection, ReplayConfig
from nemo_gdpo.rounds.answers import PromptAnswers, Scored
from nemo_gdpo.rounds.groups import group_of
from nemo_gdpo.rounds.replay import Past, are_one, kept, normalised, priority


def texts(found: Sequence[Past]) -> list[str]:
    return [answer.text for answer in found]


def test_priority_is_the_log_reward_less_its_age() -> None:
    """3 / 2 - 0.5 * 2 = 0.5."""
    assert priority(Past("x", 3.0, 2), beta=2.0, recency=0.5) == pytest.approx(0.5)


def test_the_best_are_kept_and_age_counts() -> None:
    """Priorities 2 - 0, 2.5 - 1 and 1 - 0 with recency 1; without it 2.5 comes first."""
    answers = [Past("new", 2.0, 0), Past("old", 2.5, 1), Past("poor", 1.0, 0)]
    assert texts(kept(answers, ReplayConfig(size=2), 1.0)) == ["new", "old"]
    assert texts(kept(answers, ReplayConfig(size=2, recency=0.0), 1.0)) == ["old", "new"]
    assert kept(answers, ReplayConfig(size=0), 1.0) == []


def test_too_old_is_not_kept() -> None:
    answers = [Past("a", 1.0, 1), Past("b", 9.0, 3)]
    assert texts(kept(answers, ReplayConfig(max_staleness=2), 1.0)) == ["a"]


def test_one_answer_said_twice_is_kept_once() -> None:
    answers = [Past("A good film.", 1.0, 0), Past("a  good\nFILM.", 2.0, 0), Past("Bad.", 0.0, 0)]
    assert texts(kept(answers, ReplayConfig(similarity=1.0), 1.0)) == ["a  good\nFILM.", "Bad."]


def test_near_duplicates_by_the_share_of_matching_characters() -> None:
    """`abcdefghij` and `abcdefghiX` share 9 of 10 characters: a ratio of 2 * 9 / 20 = 0.9."""
    one, other = "abcdefghij", "abcdefghiX"
    assert are_one(normalised(one), normalised(other), 0.9)
    assert not are_one(normalised(one), normalised(other), 0.91)
    answers = [Past(one, 1.0, 0), Past(other, 0.0, 0)]
    assert texts(kept(answers, ReplayConfig(similarity=0.9), 1.0)) == [one]
    assert len(kept(answers, ReplayConfig(similarity=0.91), 1.0)) == 2


def test_a_cluster_has_its_share_and_no_more() -> None:
    """Angles 0, 10, 20 and 90 degrees; a quarter of 4 is one answer, a half two."""
    angles = {"a0": 0, "a10": 10, "a20": 20, "b": 90}

    def embed(asked: Sequence[str]) -> list[Any]:
        radians = [np.radians(angles[text]) for text in asked]
        return [2 * np.array([np.cos(r), np.sin(r)], dtype=np.float32) for r in radians]

    answers = [Past("a0", 4.0, 0), Past("a10", 3.0, 0), Past("a20", 2.0, 0), Past("b", 1.0, 0)]
    found = {
        share: texts(
            kept(answers, ReplayConfig(size=4, similarity=1.0, cluster_share=share), 1.0, embed)
        )
        for share in (0.25, 0.5, 1.0)
    }
    assert found == {0.25: ["a0", "b"], 0.5: ["a0", "a10", "b"], 1.0: ["a0", "a10", "a20", "b"]}
    # cos 10 = 0.985: below a limit of 0.99 every one is a cluster of its own.
    apart = ReplayConfig(size=4, similarity=1.0, cluster_share=0.25, cluster_cosine=0.99)
    assert len(kept(answers, apart, 1.0, embed)) == 4


# --- groups ------------------------------------------------------------------------------------


def line(*answers: tuple[str, float | None], staleness: int = 0) -> PromptAnswers:
    return PromptAnswers(
        "p", "prompt", 2, staleness,
        tuple(
            Scored(text, score is not None, score, score, (), None, None, 1.0)
            for text, score in answers
        ),
    )  # fmt: skip


def group(one: PromptAnswers, pool: Sequence[Past], **replay: Any) -> dict[str, Any] | str:
    section = GroupsSection(round=2, size=4, replay=ReplayConfig(**replay))
    return group_of(one, pool, GroupsConfig(groups=section))


NEW = [("one", 1.0), ("two", 2.0), ("three", 3.0), ("four", 4.0), ("five", 5.0)]


def test_a_group_has_its_share_of_replayed_answers() -> None:
    pool = [Past("old", 7.0, 1), Past("older", 6.0, 2)]
    found = group(line(*NEW), pool, share=0.25)
    assert isinstance(found, dict)
    assert found["replayed"] == [False, False, False, True]
    assert found["responses"][3] == "old" and found["scores"][3] == 7.0
    assert found["staleness"] == [0, 0, 0, 1]
    assert set(found["responses"][:3]) < {text for text, _ in NEW}
    assert found["scores"][:3] == [dict(NEW)[text] for text in found["responses"][:3]]


def test_what_was_said_anew_is_not_replayed() -> None:
    found = group(line(*NEW), [Past("ONE", 9.0, 1), Past("old", 7.0, 1)], share=0.25)
    assert isinstance(found, dict) and found["responses"][3] == "old"


def test_replay_fills_what_cut_answers_leave() -> None:
    short = line(("one", 1.0), ("two", 2.0), ("three", 3.0), ("cut", None))
    found = group(short, [Past("old", 7.0, 1)])
    assert isinstance(found, dict) and found["replayed"] == [False, False, False, True]
    assert group(short, []) == "fewer than 4 complete answers"


def test_different_answers_come_before_repeated_ones() -> None:
    twice = line(("one", 1.0), ("one", 1.0), ("two", 2.0), ("three", 3.0), ("four", 4.0))
    found = group(twice, [])
    assert isinstance(found, dict) and len(set(found["responses"])) == 4
    found = group(line(("one", 1.0), ("one", 1.0), ("two", 2.0), ("two", 2.0)), [])
    assert isinstance(found, dict) and sorted(found["responses"]) == ["one", "one", "two", "two"]
