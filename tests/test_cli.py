"""The command line: exit statuses, output, which ranks are started or joined."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemo_gdpo import cli
from nemo_gdpo.config.composition import compose, config_yaml, read_config
from nemo_gdpo.config.help import keys
from nemo_gdpo.config.objective import DPOSettings
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, EXIT_USER_ERROR, UserError
from nemo_gdpo.launch.slurm import adopt_slurm_world, first_node
from nemo_gdpo.launch.verbs import VERBS, Verb
from nemo_gdpo.verbs import rank as rank_module
from nemo_gdpo.verbs import start as start_module

ROOT = Path(__file__).resolve().parents[1]
WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "NEMO_GDPO_MODEL")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORLD:
        monkeypatch.delenv(name, raising=False)


def _nemo_gdpo(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in WORLD}
    return subprocess.run(
        [sys.executable, "-m", "nemo_gdpo.cli", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# -- processes -------------------------------------------------------------------------------------


def test_resolved_configuration_round_trip() -> None:
    """What is printed is YAML and says exactly what the run would read; nothing else is printed."""
    overrides = ["experiment=gdpo_llama3_8b", "optim.lr=1e-6"]
    done = _nemo_gdpo("train", *overrides, "--cfg", "job", "--resolve")
    assert (done.returncode, done.stderr) == (EXIT_DONE, "")
    assert yaml.safe_load(done.stdout) == compose(overrides, TRAIN).plain
    assert "${" not in done.stdout


def test_a_mistake_is_one_line_and_status_2() -> None:
    done = _nemo_gdpo("train", "objective=gdpoo")
    assert done.returncode == EXIT_USER_ERROR
    assert done.stdout == ""
    assert done.stderr == (
        "nemo-gdpo: error: objective=gdpoo: unknown choice (did you mean gdpo?); "
        "the choices are adpo, dpo, gdpo, gdpo_released, gflownet, gflownet_subtb, ipo, odpo, spl\n"
    )


def test_printing_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys; from nemo_gdpo.cli import main; main(['train', '--cfg', 'job']); "
        "print([m for m in ('torch', 'megatron', 'nemo', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# -- verbs -----------------------------------------------------------------------------------------


def test_help_says_which_methods_these_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    head = " ".join(lines[:6])
    for words in ("GFlowNet-DPO", "DPO with an offset", "active-query DPO", "not online DPO"):
        assert words in head
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line.strip()]
    assert {"validate", "prepare", "convert", "reference", "train", "doctor"} <= set(listed)


def test_no_verb_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == EXIT_USER_ERROR
    assert "usage: nemo-gdpo VERB" in capsys.readouterr().out


def _every_verb() -> list[tuple[list[str], Verb]]:
    found = [([verb.name], verb) for verb in VERBS]
    return found + [([v.name, f.name], f) for v in VERBS for f in v.followers]


EVERY_VERB = pytest.mark.parametrize(
    ("words", "verb"), [pytest.param(w, v, id=" ".join(w)) for w, v in _every_verb()]
)
CONFIGURED = pytest.mark.parametrize(
    ("words", "verb"),
    [pytest.param(w, v, id=" ".join(w)) for w, v in _every_verb() if v.reads is not None],
)


@EVERY_VERB
@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("first", [True, False])
def test_every_verb_answers_help(
    words: list[str], verb: Verb, flag: str, first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([flag, *words] if first else [*words, flag]) == EXIT_DONE
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"usage: nemo-gdpo {' '.join(words)}")


@CONFIGURED
@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("place", ["after an override", "before the overrides", "alone"])
def test_help_shows_the_keys_in_every_position(
    words: list[str], verb: Verb, flag: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "after an override": [*words, "seed=1", flag],
        "before the overrides": [words[0], flag, *words[1:], "seed=1"],
        "alone": [*words, flag],
    }[place]
    assert cli.main(arguments) == EXIT_DONE
    captured = capsys.readouterr()
    assert captured.err == ""
    root = verb.root()
    assert root is not None
    for key in keys(root):
        assert f"  {key.name}={key.default}" in captured.out
        assert " ".join(key.help.split()[:4]) in captured.out


@CONFIGURED
def test_every_verb_with_a_configuration_prints_it(
    words: list[str], verb: Verb, capsys: pytest.CaptureFixture[str]
) -> None:
    root = verb.root()
    assert root is not None
    assert cli.main([*words, "--cfg", "job", "--resolve"]) == EXIT_DONE
    assert root.parse(yaml.safe_load(capsys.readouterr().out)) == root.schema()


@EVERY_VERB
def test_every_verb_can_be_run(words: list[str], verb: Verb) -> None:
    module, _, function = verb.runs.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--resolve"], "add --cfg job"),
        (["train", "--cfg", "hydra"], "only `--cfg job` exists"),
        (["train", "--cgf", "job"], "unknown flag"),
        (["validate", "--cgf", "job"], "it takes --config FILE, --cfg job, --resolve, --elsewhere"),
        (["train", "--config"], "names no file"),
        (["train", "--config", "/no/such.yaml"], "file not found"),
        (["doctor", "x=1"], "takes no arguments"),
        (["label"], "label: name one of margins, select"),
        (["label", "ask"], "label ask: name one of margins, select"),
        (["train", "logger.wandb_api_key=x"], "WANDB_API_KEY"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


def test_validate_names_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(
        ["validate", "model.restore_from_path=/no", "data.train_path=/no.jsonl", "optim.lr=-1"]
    )
    captured = capsys.readouterr()
    assert status == EXIT_USER_ERROR
    assert captured.out == ""
    keys = [line.split(": ")[2] for line in captured.err.splitlines()[:-1]]
    assert keys == ["optim.lr", "model.restore_from_path", "data.train_path"]
    assert captured.err.splitlines()[-1] == "nemo-gdpo: 3 problems found"


def test_validate_for_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "experiment=gdpo_llama3_8b",
        "precision=fp8_tensorwise",
        "model.restore_from_path=/there",
        "data.train_path=/there/train.parquet",
        "data.validation_path=/there/test.parquet",
    ]
    assert cli.main(["validate", *arguments, "--elsewhere"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert out.startswith("valid\n")
    assert "16 ranks: TP4 x PP1 x CP1 x DP4" in out
    # Rows as long as both of a pair's sequences can be: 2 x 1 x 2048.
    told = "128 pairs in packed rows of up to 4096 tokens on 4 data-parallel ranks"
    assert f"{told}\n" in out
    shared = ["data.prefix_sharing=true", "--elsewhere"]
    assert cli.main(["validate", *arguments, *shared]) == EXIT_DONE
    assert f"{told}, each prompt once" in capsys.readouterr().out
    padded = ["data.packing=false", "--elsewhere"]
    assert cli.main(["validate", *arguments, *padded]) == EXIT_DONE
    assert "128 pairs = 4 x 1 x 32 micro-batches" in capsys.readouterr().out
    assert cli.main(["validate", *arguments]) == EXIT_USER_ERROR


def test_train_refuses_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module, "launch_ranks", lambda *_: pytest.fail("started"))
    assert cli.main(["train", "parallel=pp2"]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert "2 problems:\n  1. model.restore_from_path: is not set" in error
    assert "  2. data.train_path: is not set" in error


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == EXIT_DONE
    found = {line[:20].strip(): line[21:] for line in capsys.readouterr().out.splitlines()}
    assert found["python"] == sys.version.split()[0]
    assert found["torch"].startswith("2.")
    assert "fp32" in found["precisions"]
    assert {"megatron-core", "nemo-toolkit", "platform"} <= set(found)
    assert found["layers in bf16"].startswith("local (Transformer Engine needs a GPU")
    assert found["Transformer Engine"].startswith("not usable: ")
    assert found["attention fused"].startswith("no: needs Transformer Engine's layers")
    assert found["optimizer"].startswith("torch AdamW (")
    assert "needs a GPU with FP8 tensor cores" in found["fp8_tensorwise"]
    assert found["training python"] == sys.executable
    assert found["generation python"]


# -- train: which ranks ----------------------------------------------------------------------------


@pytest.fixture
def valid(tmp_path: Path) -> list[str]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"num_attention_heads": 4, "num_hidden_layers": 4}')
    (model / "model.safetensors").write_bytes(b"x")
    (tmp_path / "train.jsonl").write_text('{"prompt": "p", "chosen": " a", "rejected": " b"}\n')
    return [
        f"model.restore_from_path={model}",
        f"data.train_path={tmp_path}/train.jsonl",
        f"output_dir={tmp_path}/out",
    ]


@pytest.fixture
def training_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, RunConfig]]:
    """A stand-in for what a rank does, which records how it is called."""
    calls: list[tuple[str, RunConfig]] = []

    def run_task(task: str, config: RunConfig) -> int:
        calls.append((task, config))
        return EXIT_REQUEUE

    monkeypatch.setattr(rank_module, "run_task", run_task)
    # start() sets it when it is missing; the test puts back what was there.
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return calls


@pytest.mark.parametrize("verb", ["train", "reference"])
def test_one_rank_runs_here(
    verb: str, valid: list[str], training_calls: list[tuple[str, RunConfig]]
) -> None:
    assert cli.main([verb, *valid, "objective=dpo"]) == EXIT_REQUEUE
    ((task, config),) = training_calls
    assert task == verb
    assert config.objective == DPOSettings()
    assert config.output_dir == valid[2].partition("=")[2]


def test_a_mesh_starts_its_ranks_with_the_checked_configuration(
    valid: list[str],
    training_calls: list[tuple[str, RunConfig]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[int, list[str], RunConfig]] = []

    def launch(size: int, command: list[str]) -> int:
        started.append((size, command[1:-1], read_config(Path(command[-1]), TRAIN)))
        return EXIT_DONE

    monkeypatch.setattr(start_module, "launch_ranks", launch)
    assert cli.main(["train", *valid, "parallel=tp2_pp2"]) == EXIT_DONE
    ((size, command, config),) = started
    assert (size, command) == (4, ["-m", "nemo_gdpo.verbs.rank", "train"])
    assert config == TRAIN.parse(compose([*valid, "parallel=tp2_pp2"], TRAIN).plain)
    assert training_calls == []


def test_refused_start_keeps_the_recorded_config(
    valid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks may still refuse the run; the launcher writes nothing where another may have been."""
    monkeypatch.setattr(start_module, "launch_ranks", lambda *_: EXIT_USER_ERROR)
    assert cli.main(["train", *valid, "parallel=pp2"]) == EXIT_USER_ERROR
    assert not (tmp_path / "out").exists()


def test_a_runs_own_file_can_be_given_back(
    valid: list[str], tmp_path: Path, training_calls: list[tuple[str, RunConfig]]
) -> None:
    config = TRAIN.parse(compose([*valid, "objective=ipo", "optim.lr=1e-6"], TRAIN).plain)
    file = tmp_path / "config.yaml"
    file.write_text(config_yaml(config))
    assert cli.main(["train", "--config", str(file)]) == EXIT_REQUEUE
    assert cli.main(["train", f"--config={file}", "seed=7"]) == EXIT_REQUEUE
    assert [c for _, c in training_calls] == [config, config.model_copy(update={"seed": 7})]


def test_under_torchrun_it_joins(
    valid: list[str],
    training_calls: list[tuple[str, RunConfig]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert cli.main(["train", *valid, "parallel=pp2"]) == EXIT_REQUEUE
    assert len(training_calls) == 1


def test_a_world_that_does_not_fit_is_refused(
    valid: list[str],
    training_calls: list[tuple[str, RunConfig]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.main(["train", *valid, "parallel=pp2"]) == EXIT_USER_ERROR
    assert "3 ranks cannot be cut into copies of TP1 x PP2" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", *valid, "parallel=pp2"]) == EXIT_USER_ERROR
    assert capsys.readouterr().err == ""  # one rank speaks for all
    assert training_calls == []


def test_several_nodes_need_a_launcher(
    valid: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *valid, "parallel=tp2", "trainer.num_nodes=2"]) == EXIT_USER_ERROR
    assert "start this command with srun" in capsys.readouterr().err


def test_srun_variables() -> None:
    environ = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "16",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "MASTER_PORT": "4321",
    }
    assert adopt_slurm_world(environ)
    assert environ["RANK"] == "5"
    assert environ["WORLD_SIZE"] == "8"
    assert environ["LOCAL_RANK"] == "1"
    assert environ["MASTER_ADDR"] == "gpu07"
    assert environ["MASTER_PORT"] == "4321"
    del environ["MASTER_PORT"], environ["RANK"]
    assert adopt_slurm_world(environ)
    assert environ["MASTER_PORT"] == str(20_000 + (1234 * 16 + 2) % 10_000)


def test_no_srun_step_of_several_tasks() -> None:
    assert not adopt_slurm_world({})
    assert not adopt_slurm_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
    assert not adopt_slurm_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "RANK": "0"})
    with pytest.raises(UserError, match="script of a job of 16 tasks"):
        adopt_slurm_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"})


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[03-07,9],m1", "n03"), ("a-b[2,5]", "a-b2")],
)
def test_first_node(nodelist: str, first: str) -> None:
    assert first_node(nodelist) == first
