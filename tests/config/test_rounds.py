"""The configuration of rounds: presets that compose and have no problem, and whose they are."""

from __future__ import annotations

import pytest

from nemo_gdpo.config.composition import compose, config_dir, group_options
from nemo_gdpo.config.rounds import ROUNDS
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.errors import UserError
from nemo_gdpo.rounds.checks import problems

OURS = ("rounds_gflownet_gemma_2b", "rounds_gflownet_llama3_8b")


@pytest.mark.parametrize("name", OURS)
def test_an_experiment_of_rounds_has_no_problem_on_another_machine(name: str) -> None:
    given = [f"experiment={name}", "model.restore_from_path=/nowhere", "constraints=film_review",
             "rounds.prompts_path=/nowhere.jsonl"]  # fmt: skip
    config = ROUNDS.parse(compose(given, ROUNDS).plain)
    assert problems(config, files=False) == []
    assert config.objective.name == "gflownet" and config.rounds.number > 1


def test_whose_an_experiment_is() -> None:
    """What sets sections of rounds is none of train's; train's own serve rounds, too."""
    train = set(group_options(config_dir(), TRAIN)["experiment"])
    rounds = set(group_options(config_dir(), ROUNDS)["experiment"])
    assert rounds - train == set(OURS) and train < rounds
    with pytest.raises(UserError, match="unknown choice"):
        compose([f"experiment={OURS[0]}"], TRAIN)
