"""Every problem of a run of rounds that shows before its first stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemo_gdpo.config.model_files import read_model_config
from nemo_gdpo.config.objective import GFlowNetSettings
from nemo_gdpo.config.pairs import PairRules
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.rounds import ReplayConfig, RoundsConfig
from nemo_gdpo.config.validate import problems as training_problems
from nemo_gdpo.constraints import constraint_problems, is_constrained
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.cli import problems as sampling_problems
from nemo_gdpo.generation.sweep import sampling_points
from nemo_gdpo.pairing.cli import unread_rules
from nemo_gdpo.rounds.settings import Settings

OWN_DATA = ("data.train_path", "data.format", "data.preset")


def problems(config: RoundsConfig, *, files: bool = True) -> list[Problem]:
    """All of them.

    Args:
        config: well-typed.
        files: also look for models and prompts; False for a run on another machine.
    """
    found = [*_prompts(config, files=files), *_data(config), *_scores(config), *_rounds(config)]
    found += _groups(config) if isinstance(config.objective, GFlowNetSettings) else _pairs(config)
    found += [*_reference(config), *_exports(config)]
    known = {problem.key for problem in found}
    for problem in _of_stages(config, files=files):
        if problem.key not in known:
            known.add(problem.key)
            found.append(problem)
    return found


def _of_stages(config: RoundsConfig, *, files: bool) -> Iterator[Problem]:
    """What train and generate say of the first round's configurations, and train of the second's
    settings."""
    settings = Settings(config)
    if files:
        for problem in sampling_problems(settings.generate(1)):
            if problem.key not in ("data.prompts_path", "output_dir"):
                yield problem
    else:
        yield from constraint_problems(config.constraints)
    model_config = None
    if files and config.model.restore_from_path is not None:
        try:
            model_config = read_model_config(config.model.restore_from_path)
        except UserError as error:
            yield Problem("model.restore_from_path", str(error), "or give another model")
    rounds = (1, 2) if config.rounds.number > 1 else (1,)
    for number in rounds:
        if number > 1 and config.data.group_size is None and settings.makes_groups:
            return  # told already
        train = settings.train(number)
        told = training_problems(train, None, model_config, files=files and number == 1)
        yield from (problem for problem in told if problem.key not in OWN_DATA)


def _prompts(config: RoundsConfig, *, files: bool) -> Iterator[Problem]:
    path = config.rounds.prompts_path
    if path is None:
        yield Problem("rounds.prompts_path", "is not set", "give a JSONL file of prompts")
    elif files and not Path(path).is_file():
        yield Problem("rounds.prompts_path", f"{path} is not a file", "correct the path")


def _data(config: RoundsConfig) -> Iterator[Problem]:
    """Keys of data that rounds write themselves."""
    data = config.data
    if data.train_path is not None:
        yield Problem(
            "data.train_path",
            f"is {data.train_path}, and every round makes its own data",
            "leave it out (unset NEMO_GDPO_TRAIN)",
        )
    if data.preset is not None or data.format != "auto":
        key = "data.format" if data.preset is None else "data.preset"
        yield Problem(key, "is set, and every round writes its own format", "leave it out")
    for name in ("weight_column", "margin_column"):
        if getattr(data, name) is not None:
            reason = "is set, and what a round writes has no such column"
            yield Problem(f"data.{name}", reason, "set it to null")
    if config.reference_model is not None:
        reason = "is set, and rounds.reference says which model it is"
        yield Problem("reference_model", reason, "leave it out; set rounds.reference")


def _scores(config: RoundsConfig) -> Iterator[Problem]:
    rounds, objective = config.rounds, config.objective
    if len(rounds.rewards) > 1:
        reason = f"names {len(rounds.rewards)} rewards, and a score is of one"
        yield Problem("rounds.rewards", reason, "name one, or a python reward that adds them up")
    tempered = isinstance(objective, GFlowNetSettings) and (
        objective.reward_temperature != 1.0 or rounds.reward_temperature_end is not None
    )
    if not rounds.rewards and not is_constrained(config.constraints) and not tempered:
        yield Problem(
            "rounds.rewards",
            "is empty, and there are no constraints: all answers would be alike",
            "set rounds.rewards=[KIND], or constraints",
        )
    if rounds.date is not None and not any(r.kind == "hf_reward_model" for r in rounds.rewards):
        reason = "is set, and only the template of a hf_reward_model may read it"
        yield Problem("rounds.date", reason, "set it to null")


def _rounds(config: RoundsConfig) -> Iterator[Problem]:
    rounds = config.rounds
    if rounds.staleness and rounds.number < 2:
        reason = "is 1, and a single round has no older model"
        yield Problem("rounds.staleness", reason, "set it to 0")
    if config.generation.backend == "server":
        yield Problem(
            "generation.backend",
            "server goes on serving the model of the first round",
            "set vllm or ray",
        )


def _groups(config: RoundsConfig) -> Iterator[Problem]:
    """What groups take, and what they do not read."""
    rounds, size = config.rounds, config.data.group_size
    answers = config.generation.num_samples * len(sampling_points(config.generation))
    if size is None:
        yield Problem(
            "data.group_size",
            f"is not set, and a prompt has {answers} answers",
            f"set an even number, at most {answers - answers % 2}; smaller where answers are cut",
        )
    elif size > answers:
        yield Problem(
            "data.group_size",
            f"{size} answers make a group, and a prompt has {answers}",
            "lower it, or raise generation.num_samples",
        )
    unread = [name for name, value in config.pairs if value != getattr(PairRules(), name)]
    if unread:
        reason = "nothing reads it with objective=gflownet, which learns from groups"
        yield Problem(f"pairs.{unread[0]}", reason, "leave it out")
    if rounds.reference != "first":
        yield Problem(
            "rounds.reference",
            "previous would put another reward into every round, and a GFlowNet has one",
            "set it to first",
        )
    if rounds.reward_temperature_end is not None and rounds.number < 2:
        reason = "is set, and a single round has one temperature"
        yield Problem("rounds.reward_temperature_end", reason, "set objective.reward_temperature")
    yield from _replay(config)


def _replay(config: RoundsConfig) -> Iterator[Problem]:
    rounds, replay, usual = config.rounds, config.rounds.replay, ReplayConfig()
    if replay.size == 0 and replay.share > 0:
        reason = "is above 0, and with size=0 no answer is kept"
        yield Problem("rounds.replay.share", reason, "raise rounds.replay.size, or set share to 0")
    if replay.cluster_share < 1.0 and rounds.encoder is None:
        reason = "is below 1, and there is no encoder to compare meanings with"
        yield Problem("rounds.replay.cluster_share", reason, "set rounds.encoder")
    if replay.cluster_share >= 1.0 and replay.cluster_cosine != usual.cluster_cosine:
        reason = "nothing reads it with rounds.replay.cluster_share=1"
        yield Problem("rounds.replay.cluster_cosine", reason, "leave it out, or lower that")


def _pairs(config: RoundsConfig) -> Iterator[Problem]:
    """What pairs take, and what they do not read."""
    rounds = config.rounds
    if rounds.replay != ReplayConfig():
        reason = "is set, and only the groups of objective=gflownet are replayed into"
        yield Problem("rounds.replay", reason, "leave it out")
    if rounds.reward_temperature_end is not None:
        reason = f"nothing reads it with objective={config.objective.name}"
        yield Problem("rounds.reward_temperature_end", reason, "leave it out")
    if config.pairs.method == "redipo" and config.objective.needs_scores:
        yield Problem(
            "pairs.method",
            f"redipo's chosen answers may score less, and objective={config.objective.name} "
            "needs scores that say what is preferred",
            "set best_worst or divpo",
        )
    by_meaning = config.pairs.method == "redipo" or (
        config.pairs.method == "divpo" and config.pairs.rarity == "embedding"
    )
    if by_meaning and rounds.encoder is None:
        reason = f"is null, and pairs.method={config.pairs.method} compares meanings"
        yield Problem("rounds.encoder", reason, "give an encoder")
    log_probs = config.generation.logprobs != "none"
    if config.pairs.method == "divpo" and config.pairs.rarity == "log_prob" and not log_probs:
        reason = "log_prob reads what generation.logprobs=none does not keep"
        yield Problem("pairs.rarity", reason, "set generation.logprobs=cumulative")
    yield from unread_rules(config.pairs)


def _reference(config: RoundsConfig) -> Iterator[Problem]:
    """Ways of having a reference that go on with the wrong model in the second round."""
    if config.rounds.number < 2:
        return
    is_first, adapter = config.rounds.reference == "first", config.lora.rank is not None
    if is_first and config.reference in ("resident", "swap"):
        yield Problem(
            "reference",
            f"{config.reference} keeps what a round starts from, and rounds.reference is first",
            "set reference=cache, or rounds.reference=previous",
        )
    if not is_first and config.reference == "adapter_off":
        yield Problem(
            "reference",
            "adapter_off is the first model, and rounds.reference is previous",
            "set reference=cache, or rounds.reference=first",
        )
    if is_first and adapter and config.lora.restore_from_path and config.reference == "cache":
        yield Problem(
            "lora.restore_from_path",
            "with it the first model is a base and an adapter, and later rounds compare with the "
            "base alone",
            "merge the adapter first, set reference=adapter_off, or rounds.reference=previous",
        )


def _exports(config: RoundsConfig) -> Iterator[Problem]:
    """A round begins with what the one before wrote."""
    if config.lora.rank is None:
        if not config.export_hf:
            reason = "is false, and the next round begins with output_dir/hf"
            yield Problem("export_hf", reason, "set it to true")
        return
    if not config.lora.export_peft:
        reason = "is false, and the next round begins with output_dir/peft"
        yield Problem("lora.export_peft", reason, "set it to true")
    if not config.export_hf and config.generation.backend != "vllm":
        reason = f"is false, and generation.backend={config.generation.backend} takes no adapter"
        yield Problem("export_hf", reason, "set it to true, or generation.backend=vllm")
