"""`nemo-gdpo rounds`, its own steps `score` and `groups`, and `next`, which starts nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.config.rounds import GROUPS, ROUNDS, SCORE, RoundsConfig
from nemo_gdpo.errors import EXIT_DONE, UserError
from nemo_gdpo.evaluation.local_models import local_models
from nemo_gdpo.io.output_lock import hold

if TYPE_CHECKING:
    from nemo_gdpo.io.arrays import Cache


def run(request: Request) -> int:
    """Carry out all rounds, as far as they are left; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong, before anything is written.
        RunError: a stage was killed, or the disk failed.
    """
    from nemo_gdpo.rounds.report import show
    from nemo_gdpo.rounds.run import go

    config = _checked(request)
    with hold(Path(config.output_dir)):
        status = go(config)
        if status == EXIT_DONE:
            show(config)
    return status


def next_stages(request: Request) -> int:
    """Record what is finished, and print what can begin now: a line `NAME FILE VERB` each.

    For schedulers: nothing is started. No line means that all rounds are done.

    Raises:
        UserError: see `run`.
    """
    from nemo_gdpo.rounds.report import show
    from nemo_gdpo.rounds.run import Rounds

    config = _checked(request)
    with hold(Path(config.output_dir)):
        rounds = Rounds(config)
        rounds.record_finished()
        stages = rounds.ready()
        rounds.write_lines()
        if not stages:
            show(config, printed=False)
    for stage in stages:
        verb = " ".join(rounds.settings.verb(stage))
        print(f"{stage.name} {rounds.settings.file(stage)} {verb}")
    return EXIT_DONE


def _checked(request: Request) -> RoundsConfig:
    from nemo_gdpo.rounds.checks import problems

    config = request.parse(ROUNDS)
    raise_problems(problems(config))
    return config


def score(request: Request) -> int:
    """Score a round's samples; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong; nothing is written.
    """
    config = request.parse(SCORE)
    if config.score.samples is None:
        raise UserError("score.samples: is not set; set it to a directory of nemo-gdpo generate")
    if len(config.score.rewards) > 1:
        raise UserError("score.rewards: names several, and a score is of one; name one")

    def work(cache: Cache) -> str:
        from nemo_gdpo.rounds.score import score as score_all

        found = score_all(config, cache)
        return f"scored: {sum(len(line.answers) for line in found)} answers, {config.output_dir}"

    return _with_models(config.output_dir, config.score.cache_dir, work)


def groups(request: Request) -> int:
    """Make groups of scored answers; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong; nothing is written.
    """
    config = request.parse(GROUPS)
    if not config.groups.scored:
        raise UserError("groups.scored: is empty; name directories of nemo-gdpo rounds score")

    def work(cache: Cache) -> str:
        from nemo_gdpo.rounds.groups import make_groups

        return f"groups: {json.dumps(make_groups(config, cache).stats())}"

    return _with_models(config.output_dir, config.groups.cache_dir, work)


def _with_models(output_dir: str, cache_dir: str | None, work: Callable[[Cache], str]) -> int:
    """Carry out what may load models, and print what it says."""
    from nemo_gdpo.io.arrays import Cache

    output = Path(output_dir)
    place = Path(cache_dir or output / "cache") / "arrays.sqlite"
    with local_models(), hold(output), Cache(place) as cache:
        print(work(cache))
    return EXIT_DONE
