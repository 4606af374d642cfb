"""The JSON files of the ODPO paper's repository (Amini et al. 2024), in both shapes.

Sentiment and toxicity: JSON lines `{prompt, text, reward}`; rows with one prompt form a group, the
group's first two responses make the pair, the higher reward wins.
TL;DR: one JSON object `{post: {responses, rewards}}`; every unordered pair of a post with different
rewards, each exactly once; the prompt is the post followed by "\\n\\nTL;DR:".

Neither file separates prompt and response by a space, so that joining them would fuse two words: a
response that does not start with white space gets one space in front.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from nemo_gdpo.data.checks import refuse_half_characters, score, text_field
from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.types import RawPair, ReadStats, Row
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.jsonl import Take, refuse


def read_odpo_json(path: str | Path, stats: ReadStats, take: Take = refuse) -> Iterator[RawPair]:
    """Yield the pairs of one file; ties have no winner and are dropped and counted in `stats`.

    Args:
        path: of the file.
        stats: counts the ties.
        take: is told what is wrong with a row or a post.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path} does not exist; check data.train_path and data.validation_path")
    raw = file.read_bytes()
    if not raw.strip():
        raise UserError(f"{file}: the file is empty; give a file with preference pairs")
    posts = _whole_object(raw)
    if posts is None:
        yield from _grouped_rows(file, stats, take)
    else:
        yield from _posts(posts, file, stats, take)


def _whole_object(raw: bytes) -> dict[str, Any] | None:
    """The file as one object of posts, or None if it is lines."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and not {"prompt", "text", "reward"} <= set(value):
        return value
    return None


def _grouped_rows(file: Path, stats: ReadStats, take: Take) -> Iterator[RawPair]:
    from nemo_gdpo.data.readers import read_rows

    groups: dict[str, list[tuple[str, float, Row]]] = {}
    for row in read_rows(file, take=take):
        try:
            prompt, text, reward = _sample(row)
        except UserError as error:
            take(error)
        else:
            groups.setdefault(prompt, []).append((text, reward, row))
    for prompt, group in groups.items():
        if len(group) < 2:
            take(
                UserError(
                    f"{group[0][2].where}: the prompt has only this response; a pair needs two, "
                    "add one or remove the row"
                )
            )
            continue
        (text_a, reward_a, row_a), (text_b, reward_b, _) = group[:2]
        if reward_a == reward_b:
            stats.ties_dropped += 1
            continue
        yield _pair(str(row_a.number), prompt, (text_a, text_b), (reward_a, reward_b), row_a.where)


def _sample(row: Row) -> tuple[str, str, float]:
    """(prompt, response, reward) of a row."""
    prompt, text = text_field(row, "prompt"), text_field(row, "text")
    reward = score(row, "reward")
    if reward is None:
        if "reward" in row.nulls:
            raise BadPairError(row.where, "no value for 'reward'", remedy="add the number")
        raise UserError(f"{row.where}: no value for 'reward'; add the number")
    return prompt, text, reward


def _posts(posts: dict[str, Any], file: Path, stats: ReadStats, take: Take) -> Iterator[RawPair]:
    for number, (post, value) in enumerate(posts.items(), start=1):
        where = f"{file}, post {number}"
        try:
            scored = _scored(post, value, where, number)
        except UserError as error:
            take(error)
            continue
        for i, j in combinations(range(len(scored)), 2):
            (text_a, reward_a), (text_b, reward_b) = scored[i], scored[j]
            if reward_a == reward_b:
                stats.ties_dropped += 1
                continue
            yield _pair(
                f"{number}-{i}-{j}",
                f"{post}\n\nTL;DR:",
                (text_a, text_b),
                (reward_a, reward_b),
                where,
            )


def _scored(post: str, value: Any, where: str, number: int) -> list[tuple[str, float]]:
    """The responses to a post with their rewards."""
    refuse_half_characters({"post": post, "values": value}, where)
    responses = value.get("responses") if isinstance(value, dict) else None
    rewards = value.get("rewards") if isinstance(value, dict) else None
    if not isinstance(responses, list) or not isinstance(rewards, list):
        raise UserError(f"{where}: needs lists of responses and rewards; add them")
    if len(responses) != len(rewards):
        raise UserError(
            f"{where}: {len(responses)} responses but {len(rewards)} rewards; give one reward each"
        )
    scored = []
    for text, reward in zip(responses, rewards, strict=True):
        row = Row({"responses": text, "rewards": reward}, where, number)
        number_reward = score(row, "rewards")
        if number_reward is None:
            raise BadPairError(where, "a reward is null", remedy="give every response a number")
        scored.append((text_field(row, "responses"), number_reward))
    return scored


def _pair(
    name: str, prompt: str, texts: tuple[str, str], rewards: tuple[float, float], where: str
) -> RawPair:
    chosen = 0 if rewards[0] > rewards[1] else 1
    rejected = 1 - chosen
    texts = (_spaced(texts[0]), _spaced(texts[1]))
    return RawPair(
        name, prompt, texts[chosen], texts[rejected], rewards[chosen], rewards[rejected], {}, where
    )


def _spaced(text: str) -> str:
    return text if not text or text[0].isspace() else f" {text}"
