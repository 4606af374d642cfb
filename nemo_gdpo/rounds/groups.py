"""`nemo-gdpo rounds groups`: a group of answers to each prompt, new ones and replayed ones."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_gdpo.config.rounds import GroupsConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.encoder import Encoder, embed_texts, encoder_directory
from nemo_gdpo.evaluation.models import resolve_device
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.io.files import write_output
from nemo_gdpo.rounds.answers import PromptAnswers, read_answers
from nemo_gdpo.rounds.replay import Past, Vector, are_one, kept, normalised

GROUPS = "groups.jsonl"
STATS = "stats.json"


@dataclass
class Groups:
    """What came of the prompts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """In the columns of data.format=groups, with staleness and replayed of each answer."""
    without: Counter[str] = field(default_factory=Counter)
    """Reason -> prompts without a group."""

    def stats(self) -> dict[str, Any]:
        """Counts, and means over all answers of groups."""
        staleness = [value for row in self.rows for value in row["staleness"]]
        replayed = [value for row in self.rows for value in row["replayed"]]
        return {
            "groups": len(self.rows),
            "prompts_without_a_group": dict(sorted(self.without.items())),
            "replayed": sum(replayed) / len(replayed),
            "staleness_mean": sum(staleness) / len(staleness),
            "staleness_max": max(staleness),
        }


def make_groups(config: GroupsConfig, cache: Cache) -> Groups:
    """Read the rounds, make a group of each prompt of the last one, write both files.

    Raises:
        UserError: a file is missing or bad, or no prompt gives a group; nothing is written.
    """
    settings = config.groups
    *earlier, present = [list(read_answers(Path(path))) for path in settings.scored]
    _check_rounds([*earlier, present], config)
    past = _past(earlier, settings.round)
    embed = _embedder(config, cache)
    found = Groups()
    for line in present:
        pool = kept(past.get(line.id, []), settings.replay, settings.beta, embed)
        group = group_of(line, pool, config)
        if isinstance(group, str):
            found.without[group] += 1
        else:
            found.rows.append(group)
    if not found.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.without.items())
        raise UserError(
            f"groups.scored: no prompt of {len(present)} gives a group ({reasons}); sample more "
            "answers, let them grow longer (generation.max_tokens), or set a smaller group"
        )
    output = Path(config.output_dir)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
    write_output(output / GROUPS, text)
    write_output(output / STATS, json.dumps(found.stats(), indent=1) + "\n")
    return found


def _check_rounds(rounds: Sequence[Sequence[PromptAnswers]], config: GroupsConfig) -> None:
    """Rounds that rise, the last of which is the one that learns.

    Raises:
        UserError: they are not.
    """
    numbers = [sorted({line.round for line in lines}) for lines in rounds]
    flat = [number for several in numbers for number in several]
    alone = all(len(several) == 1 for several in numbers)
    if not alone or flat != sorted(set(flat)) or flat[-1] != config.groups.round:
        raise UserError(
            f"groups.scored: holds the rounds {numbers}, and groups.round is "
            f"{config.groups.round}; give one directory a round, in their order, that one last"
        )


def _past(earlier: Sequence[Sequence[PromptAnswers]], now: int) -> dict[str, list[Past]]:
    """Prompt's id -> complete answers of earlier rounds."""
    found: dict[str, list[Past]] = {}
    for lines in earlier:
        for line in lines:
            age = now - line.round + line.staleness
            found.setdefault(line.id, []).extend(
                Past(answer.text, answer.score, age)
                for answer in line.answers
                if answer.score is not None
            )
    return found


def _embedder(
    config: GroupsConfig, cache: Cache
) -> Callable[[Sequence[str]], Sequence[Vector]] | None:
    settings = config.groups
    if settings.replay.cluster_share >= 1.0 or len(settings.scored) < 2:
        return None
    encoder = Encoder(encoder_directory(settings.encoder), resolve_device(settings.device))
    return lambda texts: embed_texts(texts, encoder, cache, settings.batch_tokens)


def group_of(
    line: PromptAnswers, pool: Sequence[Past], config: GroupsConfig
) -> dict[str, Any] | str:
    """The group of a prompt, or the reason why it has none.

    New answers come in a seeded order, different ones before repeated ones: trajectory balance asks
    for no particular frequency of an answer. Where there are too few, more are replayed.

    Args:
        line: the prompt's new answers.
        pool: what may be replayed, best first.
        config: size, share, seed.
    """
    size, replay = config.groups.size, config.groups.replay
    new = [
        Past(answer.text, answer.score, line.staleness)
        for answer in line.answers
        if answer.score is not None
    ]
    ours = [normalised(answer.text) for answer in new]
    others = [
        answer
        for answer in pool
        if not any(are_one(normalised(answer.text), text, replay.similarity) for text in ours)
    ]
    wanted = max(int(replay.share * size), size - len(new))
    replayed = list(others)[:wanted]
    chosen = _different_first(new, config.seed, line)[: size - len(replayed)]
    if len(chosen) + len(replayed) < size:
        return f"fewer than {size} complete answers"
    answers = [*chosen, *replayed]
    return {
        "id": line.id,
        "prompt": line.prompt,
        "responses": [answer.text for answer in answers],
        "scores": [answer.score for answer in answers],
        "staleness": [answer.staleness for answer in answers],
        "replayed": [False] * len(chosen) + [True] * len(replayed),
    }


def _different_first(answers: Sequence[Past], seed: int, line: PromptAnswers) -> list[Past]:
    digest = hashlib.sha256(f"{line.round}\0{line.id}".encode()).digest()
    draw = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    shuffled = [answers[place] for place in draw.permutation(len(answers))]
    first: dict[str, Past] = {}
    repeated = []
    for answer in shuffled:
        if answer.text in first:
            repeated.append(answer)
        else:
            first[answer.text] = answer
    return [*first.values(), *repeated]
