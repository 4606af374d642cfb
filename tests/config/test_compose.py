"""Composition: every file under conf/, suggestions, credentials."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from nemo_gdpo.config import compose, config_dir, parse_config, problems, to_yaml
from nemo_gdpo.config.compose import group_options
from nemo_gdpo.config.schema import dotted_keys
from nemo_gdpo.errors import UserError

GROUPS = group_options(config_dir())
CHOICES = [f"{group}={option}" for group, options in GROUPS.items() for option in options]
VARIABLES = ("MODEL", "TRAIN", "VALIDATION", "OUTPUT")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"NEMO_GDPO_{name}", raising=False)


def _leaves(node: object, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return {prefix[:-1]}
    return {leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}{key}.")}


def test_the_groups_of_the_command_line() -> None:
    assert GROUPS["objective"] == ["adpo", "dpo", "gdpo", "ipo", "odpo"]
    assert GROUPS["precision"] == [
        "bf16",
        "fp32",
        "fp8_blockwise",
        "fp8_delayed",
        "fp8_mxfp8",
        "fp8_tensorwise",
    ]
    assert {"gdpo_llama3_8b", "odpo_llama3_8b", "adpo_llama3_8b"} <= set(GROUPS["experiment"])


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_parses(choice: str) -> None:
    """And holds every key of the schema, so that each can be overridden; and no other."""
    plain = compose([choice]).plain
    config = parse_config(plain)
    assert _leaves(plain) == dotted_keys(config.objective.name)
    group, _, option = choice.partition("=")
    if group == "objective":
        assert config.objective.name == option
    if group == "precision":
        assert config.precision == option


@pytest.mark.parametrize("choice", [c for c in CHOICES if not c.startswith("model=")])
def test_every_choice_is_valid_once_paths_are_given(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(f"NEMO_GDPO_{name}", f"/nowhere/{name.lower()}")
    overrides = [choice]
    if choice.startswith("parallel="):
        overrides.append("model.global_batch_size=16")
    config = parse_config(compose(overrides).plain)
    assert problems(config, files=False) == []


def test_gdpo_starts_from_the_pairwise_balance_at_kappa_8() -> None:
    objective = compose([]).plain["objective"]
    assert objective["name"] == "gdpo"
    assert objective["balance"] == "tb"
    assert objective["reward"] == "cumulative"
    assert -objective["alpha"] * objective["rejected_log_reward"] == 8.0


def test_cluster_experiment() -> None:
    plain = compose(["experiment=gdpo_llama3_8b"]).plain
    assert plain["precision"] == "bf16"
    assert plain["model"]["restore_from_path"] is None  # the variable is not set; it still prints
    assert plain["model"]["tensor_model_parallel_size"] == 4
    assert plain["model"]["sequence_parallel"] is True
    assert plain["model"]["global_batch_size"] == 128
    assert plain["model"]["activations_checkpoint_granularity"] == "selective"
    assert plain["data"]["max_length"] == 2048
    assert plain["trainer"]["devices"] * plain["trainer"]["num_nodes"] == 16
    assert plain["optim"]["lr"] == 5e-7
    odpo = compose(["experiment=odpo_llama3_8b"]).plain["objective"]
    assert (odpo["name"], odpo["beta"], odpo["alpha"], odpo["offset"]) == ("odpo", 0.5, 1.0, "log")
    adpo = compose(["experiment=adpo_llama3_8b"]).plain["objective"]
    assert (adpo["name"], adpo["beta"], adpo["gamma"]) == ("adpo", 0.1, 1.3)


def test_overrides_win_over_an_experiment() -> None:
    plain = compose(
        ["experiment=demo", "objective=odpo", "objective.beta=0.7", "parallel=tp2", "optim.lr=1e-5"]
    ).plain
    assert plain["objective"] == {"name": "odpo", "beta": 0.7, "alpha": 1.0, "offset": "log"}
    assert plain["model"]["tensor_model_parallel_size"] == 2
    assert plain["model"]["pipeline_model_parallel_size"] == 1
    assert plain["optim"]["lr"] == 1e-5
    assert plain["trainer"]["max_steps"] == 30


def test_environment_says_where_things_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_GDPO_MODEL", "/models/llama")
    composed = compose(["experiment=gdpo_llama3_8b"])
    assert composed.plain["model"]["restore_from_path"] == "/models/llama"
    assert yaml.safe_load(to_yaml(composed, resolved=True))["model"]["restore_from_path"] == (
        "/models/llama"
    )
    assert "${oc.env:NEMO_GDPO_MODEL" in to_yaml(composed, resolved=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=gdpoo", r"objective=gdpoo: there is no such choice \(did you mean gdpo\?\)"),
        ("experiment=gdpo_llama_8b", r"did you mean gdpo_llama3_8b\?"),
        ("data=movie_reviews", "data=movie_reviews: there is no such choice; the choices are anth"),
        ("precision=fp9", "the choices are bf16, fp32, fp8_blockwise"),
        ("objectve=dpo", r"did you mean objective\?"),
        ("trainer.max_step=3", r"trainer.max_step: is not a key .*did you mean trainer.max_steps"),
        ("trainer.lr=1", r"did you mean optim.lr\?"),
        ("+model.micro_batchsize=2", r"did you mean model.micro_batch_size\?"),
        ("zzz.qqq=1", r"zzz.qqq: is not a key of the configuration; correct or remove it"),
        ("objective.beta=1", "objective.beta: objective=gdpo has no such setting, only .*dpo"),
        ("~trainer.max_steps", "cannot be taken away"),
        ("seed=1,2", "asks for several runs"),
        ("experiment=[demo]", "takes one choice"),
        ("model.global_batch_size={8", "is not an override"),
        ("trainer.max_steps", "is not an override"),
    ],
)
def test_mistakes_get_one_line_with_a_suggestion(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_several_mistaken_overrides_are_named_together() -> None:
    with pytest.raises(UserError, match=r"2 problems:\n  1\. objectve.*\n  2\. trainr\.max_steps"):
        compose(["objectve=dpo", "seed=1", "trainr.max_steps=1"])


@pytest.mark.parametrize(
    "override",
    [
        "logger.wandb_api_key=SECRET",
        "+wandb.token=SECRET",
        "++hub.PASSWORD=SECRET",
        "logger.wandb.apikey=SECRET",
        "+aws.secret_access_key=SECRET",
        "logger.wandb_name=0123456789abcdef0123456789abcdef01234567",
        "logger.wandb_project='hf_abcdefghijklmnopqrstuvwxyz'",
    ],
)
def test_credentials_are_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(UserError, match="WANDB_API_KEY") as caught:
        compose([override])
    assert override.partition("=")[2].strip("'") not in str(caught.value)


def test_innocent_keys_are_not_taken_for_credentials() -> None:
    plain = compose(
        ["model.logprob_chunk_tokens=64", "data.train_path=/data/token/pairs.jsonl"]
    ).plain
    assert plain["model"]["logprob_chunk_tokens"] == 64


def test_conf_files_do_not_name_code_to_run() -> None:
    for file in config_dir().rglob("*.yaml"):
        assert "_target_" not in file.read_text(encoding="utf-8"), file


def test_variables_in_conf_are_ours() -> None:
    found: set[str] = set()
    for file in config_dir().rglob("*.yaml"):
        found |= set(re.findall(r"oc\.env:([A-Z_]+)", Path(file).read_text(encoding="utf-8")))
    assert found == {f"NEMO_GDPO_{name}" for name in VARIABLES}
