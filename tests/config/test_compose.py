"""Composition: every file under conf/, suggestions, credentials."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from nemo_gdpo.config.composition import (
    Composed,
    compose,
    config_dir,
    config_yaml,
    group_options,
    read_config,
    to_yaml,
)
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.config.objective import ADPOSettings, DPOSettings, GDPOSettings
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems
from nemo_gdpo.config.world import configured_world_size
from nemo_gdpo.errors import UserError

GROUPS = group_options(config_dir(), TRAIN)
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
    assert GROUPS["objective"] == [
        "adpo", "dpo", "gdpo", "gdpo_released", "gflownet", "gflownet_subtb", "ipo", "odpo", "spl",
    ]  # fmt: skip
    assert GROUPS["precision"] == [
        "bf16",
        "fp32",
        "fp8_blockwise",
        "fp8_mxfp8",
        "fp8_rehearsal_blockwise",
        "fp8_rehearsal_delayed",
        "fp8_rehearsal_tensorwise",
        "fp8_tensorwise",
    ]
    assert {"gdpo_llama3_8b", "odpo_llama3_8b", "adpo_llama3_8b"} <= set(GROUPS["experiment"])


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_parses(choice: str) -> None:
    """And holds every key of the schema, so that each can be overridden; and no other."""
    plain = compose([choice], TRAIN).plain
    config = TRAIN.parse(plain)
    assert _leaves(plain) == TRAIN.keys(config.objective.name)
    group, _, option = choice.partition("=")
    if group == "objective":
        assert config.objective.name == option.removesuffix("_released").removesuffix("_subtb")
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
    config = TRAIN.parse(compose(overrides, TRAIN).plain)
    assert problems(config, files=False) == []


def test_gdpo_starts_from_the_pairwise_balance_at_kappa_8() -> None:
    objective = compose([], TRAIN).plain["objective"]
    assert objective["name"] == "gdpo"
    assert objective["balance"] == "tb"
    assert objective["reward"] == "cumulative"
    assert -objective["alpha"] * objective["rejected_log_reward"] == 8.0


def test_the_released_setting_is_a_separate_preset() -> None:
    released = TRAIN.parse(compose(["objective=gdpo_released"], TRAIN).plain).objective
    assert released == GDPOSettings(
        alpha=0.1,
        rejected_log_reward=-8.0,
        eos_temperature=0.1,
        balance="db",
        reward="tokenwise",
    )


def test_nothing_given_is_every_default() -> None:
    """The sections are the only declaration: composing adds nothing to them."""
    assert TRAIN.parse(compose([], TRAIN).plain) == RunConfig()


@pytest.mark.parametrize("group", ["model", "data", "optim", "generation", "constraints"])
def test_presets_say_what_differs(group: str) -> None:
    """A key that a preset sets to the section's own default would be a second declaration."""
    root = GENERATE if group in ("constraints", "generation") else TRAIN
    default = compose([], root).plain[group]
    for file in (config_dir() / group).glob("*.yaml"):
        for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            assert value != default[key], f"{file}: {key}"


def test_cluster_experiment() -> None:
    plain = compose(["experiment=gdpo_llama3_8b"], TRAIN).plain
    assert plain["precision"] == "bf16"
    assert plain["model"]["restore_from_path"] is None  # the variable is not set; it still prints
    assert plain["model"]["tensor_model_parallel_size"] == 4
    assert plain["model"]["sequence_parallel"] is True
    assert plain["model"]["global_batch_size"] == 128
    assert plain["model"]["activations_checkpoint_granularity"] == "selective"
    assert plain["data"]["max_length"] == 2048
    assert plain["trainer"]["devices"] * plain["trainer"]["num_nodes"] == 16
    assert plain["optim"]["lr"] == 5e-7
    odpo = compose(["experiment=odpo_llama3_8b"], TRAIN).plain["objective"]
    assert (odpo["name"], odpo["beta"], odpo["alpha"], odpo["offset"]) == ("odpo", 0.5, 1.0, "log")
    adpo = compose(["experiment=adpo_llama3_8b"], TRAIN).plain["objective"]
    assert (adpo["name"], adpo["beta"], adpo["gamma"]) == ("adpo", 0.1, 1.3)


@pytest.mark.parametrize("devices", [1, 2])
def test_adapters_on_one_gpu_or_two(devices: int) -> None:
    given = ["experiment=gdpo_llama3_8b_lora", f"trainer.devices={devices}"]
    places = [f"{key}=/x" for key in (
        "model.restore_from_path", "data.train_path", "data.validation_path"
    )]  # fmt: skip
    config = TRAIN.parse(compose([*given, *places], TRAIN).plain)
    assert (config.reference, config.lora.rank) == ("adapter_off", 16)
    assert configured_world_size(config) == devices
    assert problems(config, files=False) == []


def test_overrides_win_over_an_experiment() -> None:
    plain = compose(
        [
            "experiment=demo",
            "objective=odpo",
            "objective.beta=0.7",
            "parallel=tp2",
            "optim.lr=1e-5",
        ],
        TRAIN,
    ).plain
    assert plain["objective"] == {"name": "odpo", "beta": 0.7, "alpha": 1.0, "offset": "log"}
    assert plain["model"]["tensor_model_parallel_size"] == 2
    assert plain["model"]["pipeline_model_parallel_size"] == 1
    assert plain["optim"]["lr"] == 1e-5
    assert plain["trainer"]["max_steps"] == 30


def test_environment_says_where_things_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_GDPO_MODEL", "/models/llama")
    composed = compose(["experiment=gdpo_llama3_8b"], TRAIN)
    assert composed.plain["model"]["restore_from_path"] == "/models/llama"
    assert yaml.safe_load(to_yaml(composed, resolved=True))["model"]["restore_from_path"] == (
        "/models/llama"
    )
    assert "${oc.env:NEMO_GDPO_MODEL" in to_yaml(composed, resolved=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=gdpoo", r"objective=gdpoo: unknown choice \(did you mean gdpo\?\)"),
        ("experiment=gdpo_llama_8b", r"did you mean gdpo_llama3_8b\?"),
        ("data=movie_reviews", "data=movie_reviews: unknown choice; the choices are anth"),
        ("precision=fp9", "the choices are bf16, fp32, fp8_blockwise"),
        (
            "precision=fp8_delayed",
            "precision: fp8_delayed takes its scales from past passes.* use "
            "precision=fp8_tensorwise",
        ),
        ("objectve=dpo", r"did you mean objective\?"),
        ("trainer.max_step=3", r"trainer.max_step: is not a key .*did you mean trainer.max_steps"),
        ("trainer.lr=1", r"did you mean optim.lr\?"),
        ("+model.micro_batchsize=2", r"did you mean model.micro_batch_size\?"),
        ("zzz.qqq=1", r"zzz.qqq: is not a key of the configuration; correct or remove it"),
        (
            "objective.beta=1",
            "objective.beta: objective=gdpo does not have this setting, only .*dpo",
        ),
        ("~trainer.max_steps", "cannot be taken away"),
        ("seed=1,2", "asks for several runs"),
        ("experiment=[demo]", "takes one choice"),
        ("model.global_batch_size={8", "is not an override"),
        ("trainer.max_steps", "is not an override"),
    ],
)
def test_mistakes_get_one_line_with_a_suggestion(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose([override], TRAIN)
    assert "\n" not in str(caught.value)


def test_several_mistaken_overrides_are_named_together() -> None:
    with pytest.raises(UserError, match=r"2 problems:\n  1\. objectve.*\n  2\. trainr\.max_steps"):
        compose(["objectve=dpo", "seed=1", "trainr.max_steps=1"], TRAIN)


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
        compose([override], TRAIN)
    assert override.partition("=")[2].strip("'") not in str(caught.value)


def test_innocent_keys_are_not_taken_for_credentials() -> None:
    plain = compose(
        ["model.logprob_chunk_tokens=64", "data.train_path=/data/token/pairs.jsonl"], TRAIN
    ).plain
    assert plain["model"]["logprob_chunk_tokens"] == 64


def test_conf_files_do_not_name_code_to_run() -> None:
    for file in config_dir().rglob("*.yaml"):
        assert "_target_" not in file.read_text(encoding="utf-8"), file


def test_variables_are_ours() -> None:
    found: set[str] = set()
    for text in [
        *(file.read_text(encoding="utf-8") for file in config_dir().rglob("*.yaml")),
        to_yaml(compose([], TRAIN), resolved=False),
    ]:
        found |= set(re.findall(r"oc\.env:([A-Z_]+)", text))
    assert found == {f"NEMO_GDPO_{name}" for name in (*VARIABLES, "PROMPTS")}


# -- names of other trainers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optim.learning_rate=1e-6", "use optim.lr"),
        ("learning_rate=1e-6", "use optim.lr"),
        ("objective.loss_type=ipo", "use objective=dpo, ipo, odpo, adpo or gdpo"),
        ("use_peft=true", "use lora.rank"),
        ("lora_r=8", "use lora.rank"),
        ("lora_alpha=8", "use lora.alpha"),
        ("target_modules=all-linear", "use lora.targets"),
        ("load_in_4bit=true", "use lora.base_precision=nf4"),
        ("load_in_8bit=true", "a base in 8 bits is not built"),
        ("lora_dropout=0.1", "dropout would make policy and reference two different models"),
        ("+lora.dropout=0.1", "dropout would make policy and reference two different models"),
        ("+model.peft.lora_tuning.adapter_dim=8", "use lora.rank, lora.alpha and lora.targets"),
        ("trainer.log_every_n_steps=1", "every step is logged"),
        ("per_device_train_batch_size=4", "use model.micro_batch_size"),
        ("gradient_accumulation_steps=4", "use model.global_batch_size"),
        ("num_train_epochs=1", "use trainer.max_epochs"),
        ("model_name_or_path=x", "use model.restore_from_path"),
        ("beta=0.1", "use objective.beta"),
        ("generation.num_samples=8", "remove it: it is a setting of `nemo-gdpo generate`"),
        ("policy.model_name=x", "use model.restore_from_path"),
        ("dpo.reference_policy_kl_penalty=0.1", "use objective.beta"),
        ("cluster.gpus_per_node=8", "use trainer.devices"),
        ("exp_manager.explicit_log_dir=x", "use output_dir"),
        ("trainer.dpo.max_steps=3", "use trainer.max_steps"),
    ],
)
def test_names_of_other_trainers_are_told_the_name_here(override: str, meant: str) -> None:
    key = override.lstrip("+").partition("=")[0]
    with pytest.raises(UserError, match=re.escape(meant)) as caught:
        compose([override], TRAIN)
    assert str(caught.value).startswith(f"{key}: is not a key of the configuration; ")
    assert "\n" not in str(caught.value)


def test_aliases_lead_to_keys_that_exist() -> None:
    keys, groups = TRAIN.keys(), set(GROUPS)
    for name, meant in TRAIN.aliases.items():
        assert name not in keys, f"{name} is a key"
        if meant.startswith("remove it"):
            continue
        for word in re.split(r"[ ,]+", meant.replace(" or ", ", ")):
            key = word.partition("=")[0]
            assert key in keys | groups | {"and", "its", "siblings", *GROUPS["objective"]}, meant


# -- a file given back -----------------------------------------------------------------------------


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return path


def _with(path: Path, *overrides: str) -> Composed:
    return compose(overrides, TRAIN, file=path)


def test_a_runs_own_file_is_the_same_configuration(tmp_path: Path) -> None:
    config = TRAIN.parse(
        compose(["experiment=adpo_llama3_8b", "objective.gamma=inf", "optim.lr=1e-6"], TRAIN).plain
    )
    path = _file(tmp_path, config_yaml(config))
    assert read_config(path, TRAIN) == config
    assert TRAIN.parse(_with(path).plain) == config


def test_overrides_and_presets_win_over_a_file(tmp_path: Path) -> None:
    plain = compose(["experiment=adpo_llama3_8b"], TRAIN).plain
    path = _file(tmp_path, config_yaml(TRAIN.parse(plain)))
    changed = TRAIN.parse(_with(path, "objective.gamma=3", "parallel=pp2", "seed=7").plain)
    assert changed.objective == ADPOSettings(gamma=3.0)
    assert (changed.model.tensor_model_parallel_size, changed.seed) == (1, 7)
    assert changed.model.pipeline_model_parallel_size == 2
    assert changed.data.max_length == 2048  # of the file
    other = TRAIN.parse(_with(path, "objective=dpo", "objective.beta=0.2").plain)
    assert other.objective == DPOSettings(beta=0.2)


def test_a_file_may_leave_keys_out(tmp_path: Path) -> None:
    path = _file(tmp_path, "optim: {lr: 1e-6}\nobjective: {name: dpo}\n")
    config = TRAIN.parse(_with(path).plain)
    assert config.optim.lr == 1e-6
    assert config == RunConfig(
        objective=DPOSettings(), optim=RunConfig().optim.model_copy(update={"lr": 1e-6})
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optim: {learning_rate: 1}", [], "given.yaml: optim.learning_rate: .*use optim.lr"),
        ("- 1", [], "holds no mapping"),
        ("a: [", [], "cannot be read"),
        ("logger: {wandb_api_key: x}", [], "looks like a credential"),
        ("seed: 1", ["experiment=demo"], "each describes a complete run"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _with(_file(tmp_path, text), *overrides)
    assert "\n" not in str(caught.value)


def test_a_wrong_value_in_a_file_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path, "seed: x\nobjective: {name: gdpo, beta: 1}\n")
    with pytest.raises(
        UserError, match=r"objective.beta: objective=gdpo does not have this setting"
    ) as e:
        TRAIN.parse(_with(path).plain)
    assert "seed: 'x' is not allowed" in str(e.value)
