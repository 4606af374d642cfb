"""The stages: every boundary killed and resumed, what is skipped, made again and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nemo_gdpo.config.rounds import RoundsConfig
from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, RunError, UserError
from nemo_gdpo.generation.prompts import GivenPrompt
from nemo_gdpo.rounds.plan import Plan, Stage
from nemo_gdpo.rounds.report import show
from nemo_gdpo.rounds.run import Rounds, go, prompts_of_round

from .stand_in import Crash, Runner, config_of, model_directory, results

NAMES = [stage.name for stage in Plan(2).stages()]
BOUNDARIES = [("before", name) for name in NAMES] + [("after", name) for name in NAMES]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any interruption."""
    root = tmp_path_factory.mktemp("straight")
    config = config_of(root, "rounds.replay.share=0.5")
    runner = Runner()
    assert go(config, runner) == EXIT_DONE
    assert runner.ran == NAMES
    return root


@pytest.mark.parametrize(("when", "name"), BOUNDARIES)
def test_killed_at_a_boundary_and_resumed_is_uninterrupted(
    straight: Path, when: str, name: str
) -> None:
    output = f"{when}-{name.replace('/', '-')}"
    config = config_of(straight, "rounds.replay.share=0.5", output=output)
    with pytest.raises(Crash):
        go(config, Runner(**{when: name}))
    rest = Runner()
    assert go(config, rest) == EXIT_DONE
    # A stage whose results were there when the kill came is recorded, and not made again.
    assert rest.ran == NAMES[NAMES.index(name) + (when == "after") :]
    assert results(straight / output) == results(straight / "out")


def test_lines_of_the_rounds(straight: Path) -> None:
    """Log p is -2 a word, so the entropy is twice the mean number of words; kl by hand:
    ((-3 + 3.5) + (-4 + 4.25)) / 2."""
    lines = [json.loads(line) for line in (straight / "out/rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    for line in lines:
        assert line["answers"] == 32 and line["prompts"] == 4 and line["complete"] == 1.0
        assert line["entropy"] == pytest.approx(2 * line["words"])
        assert line["reward"] == pytest.approx(line["words"] / 2)
        assert line["kl"] == pytest.approx(0.375) and line["log_z"] == 1.5
        assert line["loss_first"] == 2.0 and line["loss"] == 1.0 and line["updates"] == 2
    assert [line["replayed"] for line in lines] == [0.0, 0.5]
    assert [line["staleness_max"] for line in lines] == [0, 1]


def test_the_report_draws_each_number_over_the_rounds(
    straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(config_of(straight, "rounds.replay.share=0.5"))
    page = (straight / "out/report.html").read_text()
    (straight / "out/report.html").unlink()
    for title in ("reward", "entropy", "kl", "log z", "words", "replayed"):
        assert f"<figcaption><b>{title}</b>" in page
    # Every colour that a drawing asks for is there.
    asked = set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    assert "--run-0" in asked and asked <= set(re.findall(r"(--[a-z0-9-]+):", page))
    assert "round 1: 0.000; round 2: 0.500" in page  # the replayed share, in words
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["round", "1", "2"]
    assert ["replayed", "0.000", "0.500"] in [line.split() for line in printed]


def test_a_finished_run_does_nothing(straight: Path) -> None:
    runner = Runner()
    assert go(config_of(straight, "rounds.replay.share=0.5"), runner) == EXIT_DONE
    assert runner.ran == []


def test_more_rounds_go_on(straight: Path) -> None:
    config = config_of(straight, "rounds.replay.share=0.5", output="more")
    assert go(config, Runner()) == EXIT_DONE
    runner = Runner()
    more = config_of(straight, "rounds.replay.share=0.5", "rounds.number=3", output="more")
    assert go(more, runner) == EXIT_DONE
    assert runner.ran == [f"round_003/{kind}" for kind in ("generate", "score", "data", "train")]


def test_other_settings_are_refused_before_anything_is_written(straight: Path) -> None:
    before = results(straight / "out")
    cases = {
        "rounds.replay.share=0.25": "rounds.replay: ",
        "generation.num_samples=6": "generation.num_samples: ",
        "objective.beta=2.0": "objective.beta: ",
        "constraints.max_words=6": "constraints.max_words: ",
    }
    for change, said in cases.items():
        with pytest.raises(UserError, match="choose another output_dir") as refused:
            go(config_of(straight, "rounds.replay.share=0.5", change), Runner())
        assert str(refused.value).startswith(said)
    assert results(straight / "out") == before


def test_another_model_at_the_same_place_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(Crash):
        go(config, Runner(before="round_002/generate"))
    (tmp_path / "model").rename(tmp_path / "old")
    model_directory(tmp_path / "model", 2.0)
    with pytest.raises(UserError, match=r"the contents of model\.restore_from_path"):
        go(config, Runner())


def test_what_is_gone_is_made_again_and_what_was_changed_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(Crash):
        go(config, Runner(before="round_002/score"))
    answers = tmp_path / "out/round_001/scored/answers.jsonl"
    kept = answers.read_bytes()
    answers.write_bytes(kept.replace(b'"broken": []', b'"broken": ["x"]', 1))
    with pytest.raises(UserError, match="is not what round 1 made there, and round_002/data"):
        go(config, Runner())
    answers.unlink()
    runner = Runner()
    assert go(config, runner) == EXIT_DONE
    assert runner.ran[0] == "round_001/score"
    assert runner.ran[1:] == ["round_002/score", "round_002/data", "round_002/train"]
    assert answers.read_bytes() == kept


def test_a_result_that_nobody_needs_any_more_may_go(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(Crash):
        go(config, Runner(before="round_002/train"))
    (tmp_path / "out/round_001/samples/generations-00000.jsonl").unlink()
    runner = Runner()
    assert go(config, runner) == EXIT_DONE
    assert runner.ran == ["round_002/train"]


class Ends(Runner):
    """A stage that ends with a status of its own."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__()
        self.name, self.status = name, status

    def __call__(self, verb, file, stop):  # type: ignore[no-untyped-def]
        if f"{file.parent.name}/{file.stem}" == self.name:
            return self.status
        return super().__call__(verb, file, stop)


@pytest.mark.parametrize("status", [EXIT_REQUEUE, 2, 1])
def test_a_stage_that_ends_ends_the_command_with_its_status(tmp_path: Path, status: int) -> None:
    config = config_of(tmp_path)
    assert go(config, Ends("round_001/train", status)) == status
    assert go(config, Runner()) == EXIT_DONE


def test_a_stage_that_is_killed_or_leaves_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(RunError, match="round_001/train: was killed by SIGKILL"):
        go(config, Ends("round_001/train", -9))
    with pytest.raises(RunError, match=r"round_001/train: it ended well, and .* does not exist"):
        go(config, Ends("round_001/train", 0))


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(Crash):
        go(config, Runner(before="round_001/score"))
    for text in ('{"version": 1}', "[]", '{"version": 2, "identity": {}, "stages": {}}', "{"):
        (tmp_path / "out/rounds.json").write_text(text)
        with pytest.raises(UserError, match=r"rounds\.json"):
            go(config, Runner())


# --- which stage waits for which ---------------------------------------------------------------


def names(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def test_without_staleness_sampling_waits_for_training() -> None:
    plan = Plan(3)
    assert [plan.sampled_from(r) for r in (1, 2, 3)] == [0, 1, 2]
    assert [plan.staleness_of(r) for r in (1, 2, 3)] == [0, 0, 0]
    done = [Stage(1, "generate"), Stage(1, "score"), Stage(1, "data")]
    assert names(plan.ready(done)) == ["round_001/train"]


def test_with_staleness_sampling_goes_on_beside_training() -> None:
    """Round 2 samples from the first model as well; round 3 from what round 1 ended with."""
    plan = Plan(3, staleness=1)
    assert [plan.sampled_from(r) for r in (1, 2, 3)] == [0, 0, 1]
    assert [plan.staleness_of(r) for r in (1, 2, 3)] == [0, 1, 1]
    assert names(plan.ready([])) == ["round_001/generate", "round_002/generate"]
    done = [Stage(1, kind) for kind in ("generate", "score", "data")]  # type: ignore[arg-type]
    assert names(plan.ready(done)) == ["round_001/train", "round_002/generate"]
    done += [Stage(1, "train"), *(Stage(2, kind) for kind in ("generate", "score", "data"))]  # type: ignore[arg-type]
    assert names(plan.ready(done)) == ["round_002/train", "round_003/generate"]


def test_staleness_is_in_every_row(tmp_path: Path) -> None:
    config = config_of(tmp_path, "rounds.staleness=1", "rounds.replay.share=0.5")
    assert go(config, Runner()) == EXIT_DONE
    rows = [
        json.loads(line)
        for line in (tmp_path / "out/round_002/data/groups.jsonl").read_text().splitlines()
    ]
    for row in rows:
        # New ones are one training old; those of round 1, sampled from the same model, also one.
        assert row["staleness"] == [1, 1, 1, 1]
        assert row["replayed"] == [False, False, True, True]


# --- configurations ----------------------------------------------------------------------------


def train_of(root: Path, number: int, *more: str):  # type: ignore[no-untyped-def]
    return Rounds(config_of(root, *more)).settings.train(number)


def test_the_reward_temperature_goes_to_its_end_in_equal_steps(tmp_path: Path) -> None:
    more = ["rounds.number=3", "rounds.reward_temperature_end=0.8"]
    found = [train_of(tmp_path, r, *more).objective.reward_temperature for r in (1, 2, 3)]
    assert found == pytest.approx([1.0, 0.9, 0.8])


def test_models_of_the_second_round(tmp_path: Path) -> None:
    first = train_of(tmp_path, 1)
    assert first.reference_model is None
    assert first.reference_cache_dir == str(tmp_path / "out/reference")
    second = train_of(tmp_path, 2)
    assert second.model.restore_from_path == str(tmp_path / "out/round_001/train/hf")
    assert second.reference_model == str(tmp_path / "model")
    dpo = ["objective=dpo", "data.group_size=null"]
    assert train_of(tmp_path, 2, *dpo).reference_model == str(tmp_path / "model")
    assert train_of(tmp_path, 2, *dpo, "rounds.reference=previous").reference_model is None
    adapter = train_of(tmp_path, 2, "lora.rank=4", "reference=adapter_off")
    assert adapter.model.restore_from_path == str(tmp_path / "model")
    assert adapter.lora.restore_from_path == str(tmp_path / "out/round_001/train/peft")
    # Said, since training starts from another model than the base alone.
    assert adapter.reference_model == str(tmp_path / "model")


def test_sampling_of_the_second_round(tmp_path: Path) -> None:
    def generate(*more: str):  # type: ignore[no-untyped-def]
        return Rounds(config_of(tmp_path, *more)).settings.generate(2)

    full = generate()
    assert full.model.restore_from_path == str(tmp_path / "out/round_001/train/hf")
    assert full.generation.seed == 1235
    adapter = generate("lora.rank=4")
    assert adapter.model.restore_from_path == str(tmp_path / "model")
    assert adapter.model.adapter_path == str(tmp_path / "out/round_001/train/peft")


def test_each_round_has_a_ledger_of_its_own(tmp_path: Path) -> None:
    more = ["objective=adpo", "data.group_size=null", f"label.ledger={tmp_path}/labels.sqlite"]
    found = train_of(tmp_path, 2, *more)
    assert found.label.ledger == str(tmp_path / "labels-round_002.sqlite")


def test_prompts_of_rounds_take_all_before_one_comes_again() -> None:
    prompts = [GivenPrompt(str(n), "x", "") for n in range(5)]
    rounds = [[one.id for one in prompts_of_round(prompts, r, 2, seed=1)] for r in range(1, 6)]
    flat = [name for several in rounds for name in several]
    assert all(len(set(several)) == 2 for several in rounds)
    assert {name: flat.count(name) for name in flat} == dict.fromkeys("01234", 2)
    assert rounds[:2] == [
        [one.id for one in prompts_of_round(prompts, r, 2, seed=1)] for r in (1, 2)
    ]
    assert len(prompts_of_round(prompts, 3, None, seed=1)) == 5


def test_pairs_are_made_of_scores(tmp_path: Path) -> None:
    """The reward is half the words, so the longest of eight answers is chosen."""
    config: RoundsConfig = config_of(tmp_path, "objective=odpo", "data.group_size=null")
    assert go(config, Runner()) == EXIT_DONE
    for number in (1, 2):
        place = tmp_path / f"out/round_00{number}"
        pairs = [json.loads(line) for line in (place / "data/pairs.jsonl").read_text().splitlines()]
        assert len(pairs) == 4
        for pair in pairs:
            assert pair["chosen_score"] == len(pair["chosen"].split()) / 2 > pair["rejected_score"]
