"""A signal at any moment of any verb: status 75, one line, no traceback, and the same command again
ends as if nothing had happened.

Most signals come at a chosen call of a function, in one process that runs all commands; what a
terminal does to a process and its children is tried on processes of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import stored
from tests.support.commands import (
    DEADLINE,
    Result,
    common,
    finish,
    metrics,
    several,
    started,
    steps,
    wait_for_step,
    without_timing,
)
from tests.support.data import pairs, write_jsonl
from tests.support.ranks import ROOT, clean_environment

STEPS = 6
TRAINING = [
    *steps(STEPS),
    "objective=gdpo",
    "trainer.save_interval=3",
    "trainer.val_check_interval=4",
    "trainer.limit_val_batches=2",
    "export_hf=true",
]
BEGINNING = "before training began"


@dataclass(frozen=True)
class Stop:
    """A signal at a call of a function, and what is said about it."""

    name: str
    signal: str
    place: str
    call: int
    said: str
    verb: str = "train"
    more: tuple[str, ...] = ()
    status: int = 75

    @property
    def word(self) -> str:
        return f"@{self.signal} {self.place} {self.call}"


TRAINER = "training.trainer:PreferenceTrainer"
SCORED = "models.preference_model:PreferenceModel.get_reference_logprobs"
STOPS = [
    Stop("looking", "SIGINT", "verbs.start:detect_hardware", 1, BEGINNING),
    Stop("opening", "SIGTERM", "training.model_source:open_loadable", 1, BEGINNING),
    Stop("converting", "SIGUSR1", "conversion.convert:megatron_tensor", 5, BEGINNING,
         more=("model.cache_converted=true",)),
    Stop("tokenising", "SIGINT", "training.datasets:save_prepared", 1, BEGINNING),
    Stop("building", "SIGTERM", "training.run:PreferenceModel", 1, BEGINNING),
    Stop("loading", "SIGUSR1", "training.model_source:load_hf_into_model", 1, BEGINNING),
    Stop("beginning to score", "SIGUSR1", "training.reference:start_cache", 1, BEGINNING),
    Stop("scoring", "SIGINT", SCORED, 3, "12 of 16 pairs are kept"),
    Stop("first step", "SIGTERM", f"{TRAINER}.train_step", 1, "after 1 of 6 steps; the checkpoint"),
    Stop("a step", "SIGINT", f"{TRAINER}.train_step", 5, "after 5 of 6 steps; the checkpoint"),
    Stop("validation", "SIGUSR1", f"{TRAINER}._per_pair", 5, "after 4 of 6 steps; the checkpoint"),
    Stop("last validation", "SIGTERM", f"{TRAINER}._per_pair", 9,
         "after 6 of 6 steps; the checkpoint"),
    Stop("saving", "SIGINT", "training.checkpoint_save:Saving.publish", 1,
         "after 3 of 6 steps; the checkpoint"),
    Stop("exporting", "SIGTERM", "training.ending:export_run", 1, "the same command makes it"),
    Stop("the reference alone", "SIGTERM", SCORED, 2, "8 of 16 pairs are kept", verb="reference"),
]  # fmt: skip
"""Of `train`, and of `reference`, on one rank."""


def command(model: Path, data: Path, held_out: Path, output: Path, stop: Stop) -> list[str]:
    given = common(model, data, output, f"data.validation_path={held_out}", *TRAINING, *stop.more)
    return [stop.verb, *(word for word in given if word != "export_hf=false")]


def tree(directory: Path) -> dict[str, str]:
    """Path within -> SHA-256 of every file."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def assert_same_training(one: Path, other: Path) -> None:
    """Metrics, weights, optimizer, trainer state, reference and export, to the bit."""
    assert without_timing(metrics(one)) == without_timing(metrics(other))
    ends = [output / "checkpoints" / f"step_{STEPS:08d}" for output in (one, other)]
    left, right = (stored(end) for end in ends)
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)
    states: list[Any] = [json.loads((end / "trainer_state.json").read_text()) for end in ends]
    assert states[0] == states[1]
    for name in ("reference", "data"):
        assert rows(one / name) == rows(other / name)
    exports = [tree(output / "hf") for output in (one, other)]
    assert exports[0]["model.safetensors"] == exports[1]["model.safetensors"]


def rows(directory: Path) -> dict[str, Any]:
    """What prepared data and a reference cache hold, however it is cut into files."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*.safetensors")):
        tensors = load_file(path)
        split = path.parent.name
        if "lengths" not in tensors:
            found[split] = {name: value.tolist() for name, value in tensors.items()}
            continue
        values = tensors["values"].split(tensors["lengths"].tolist())
        for row, value in zip(tensors["rows"].tolist(), values, strict=True):
            assert (split, row) not in found
            found[f"{split} {row}"] = value.tolist()
    return found


def assert_stopped(result: Result, said: str, status: int = 75) -> None:
    assert result.status == status, f"{result.status} {result.out} {result.err}"
    (line,) = result.complaints
    assert line.startswith("nemo-gdpo: stopped by ")
    assert said in line
    assert "Traceback" not in result.err + result.out
    if status == 75:
        assert "the same command" in line


Runs = tuple[dict[str, Result], Path]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("held_out") / "pairs.jsonl", pairs(8, seed=5))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path, held_out: Path) -> Runs:
    """Every command stopped, and again; and one that nothing disturbs."""
    root = tmp_path_factory.mktemp("stops")
    undisturbed = Stop("whole", "", "", 0, "")
    cases = {"whole": command(model, data, held_out, root / "whole", undisturbed)}
    for stop in STOPS:
        argv = command(model, data, held_out, root / stop.name, stop)
        cases[f"{stop.name}: stopped"] = [stop.word, *argv]
        # Before the same command again: that one removes old checkpoints.
        cases[f"{stop.name}: left"] = ["!", "find", str(root / stop.name), "-name", "manifest.json"]
        cases[f"{stop.name}: again"] = argv
        if stop.verb == "reference":
            cases[f"{stop.name}: trained"] = ["train", *argv[1:]]
    return several(root / "logs", cases), root


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
def test_a_run_stops_with_one_line(runs: Runs, stop: Stop) -> None:
    result = runs[0][f"{stop.name}: stopped"]
    assert_stopped(result, stop.said)
    name = "Ctrl-C" if stop.signal == "SIGINT" else stop.signal
    assert f"stopped by {name}" in result.complaints[0]
    if "the checkpoint" in stop.said:
        written = re.search(r"the checkpoint (/.*/step_\d+)", result.complaints[0])
        assert written is not None
        assert f"{written[1]}/manifest.json" in runs[0][f"{stop.name}: left"].out.splitlines()


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
def test_the_same_command_ends_as_if_nothing_had_happened(runs: Runs, stop: Stop) -> None:
    done, root = runs
    assert done["whole"].status == 0, done["whole"].err
    last = done.get(f"{stop.name}: trained", done[f"{stop.name}: again"])
    assert done[f"{stop.name}: again"].status == 0, done[f"{stop.name}: again"].err
    assert last.status == 0, last.err
    assert_same_training(root / stop.name, root / "whole")


def test_what_was_scored_is_not_scored_again(runs: Runs) -> None:
    done, root = runs
    assert "reference train: continuing, 12 of 16 pairs were computed before" in (
        done["scoring: again"].out
    )
    left = {path.name for path in (root / "scoring" / "reference").iterdir()}
    assert left == {"train", "validation"}


def test_a_validation_that_was_stopped_is_made_up_for(runs: Runs) -> None:
    again, root = runs[0]["last validation: again"], runs[1]
    assert f"{STEPS} of {STEPS} steps" in again.out
    assert "val/loss" in metrics(root / "last validation")[-1]


# -- other verbs ---------------------------------------------------------------------------------

OTHERS = [
    Stop("prepare", "SIGTERM", "data.prepared:_write", 2, "a split that is complete is kept"),
    Stop("convert", "SIGINT", "conversion.convert:megatron_tensor", 6, "files that are finished"),
    Stop("validate", "SIGTERM", "verbs.start:detect_hardware", 1, "stopped by SIGTERM", status=130),
    Stop("doctor", "SIGINT", "verbs.doctor:_packages", 1, "stopped by Ctrl-C", status=130),
]


@pytest.fixture(scope="module")
def others(
    tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path, held_out: Path
) -> Runs:
    root = tmp_path_factory.mktemp("others")
    cases: dict[str, list[str]] = {}
    for stop in OTHERS:
        for name in ("whole", "again"):
            output = root / f"{stop.name}-{name}"
            argv = {
                "convert": ["convert", "hf-to-megatron", str(model), str(output)],
                "doctor": ["doctor"],
            }.get(
                stop.name,
                [stop.name, *common(model, data, output, f"data.validation_path={held_out}")],
            )
            if name == "again":
                cases[f"{stop.name}: stopped"] = [stop.word, *argv]
            cases[f"{stop.name}: {name}"] = argv
    return several(root / "logs", cases), root


@pytest.mark.parametrize("stop", OTHERS, ids=lambda stop: stop.name)
def test_another_verb_stops_with_one_line_and_goes_on(others: Runs, stop: Stop) -> None:
    done, root = others
    assert_stopped(done[f"{stop.name}: stopped"], stop.said, stop.status)
    statuses = [done[f"{stop.name}: {name}"].status for name in ("whole", "again")]
    assert statuses[0] == statuses[1]
    one, other = (root / f"{stop.name}-{name}" for name in ("whole", "again"))
    if one.exists():
        assert statuses == [0, 0]
        assert tree(one) == tree(other)


def test_a_conversion_is_not_taken_for_another_one(others: Runs) -> None:
    """No file was finished; `tests/conversion/test_interrupted.py` continues some."""
    assert others[0]["convert: again"].err == ""


def test_an_evaluation_stops_with_one_line_and_goes_on(tmp_path: Path) -> None:
    from nemo_gdpo.evaluation.results import read_results
    from tests.evaluation.written_runs import NO_ENCODER, ordinary

    run = ordinary(tmp_path / "samples")
    given = ["evaluate", f"evaluation.runs={{a: {run}}}", NO_ENCODER]
    stop = "@SIGINT evaluation.evaluate:Evaluator 1"
    outputs = {name: tmp_path / name for name in ("stopped", "whole")}
    argv = {name: [*given, f"output_dir={output}"] for name, output in outputs.items()}
    done = several(
        tmp_path / "logs",
        {
            "stopped": [stop, *argv["stopped"]],
            "again": argv["stopped"],
            "whole": argv["whole"],
        },
    )
    assert_stopped(done["stopped"], "what was computed is kept")
    assert [done[name].status for name in ("again", "whole")] == [0, 0]
    assert read_results(outputs["stopped"]) == read_results(outputs["whole"])


# -- several ranks -------------------------------------------------------------------------------


def test_a_signal_to_one_of_two_ranks_stops_both_at_one_step(
    tmp_path: Path, model: Path, data: Path
) -> None:
    """In the reference, in a step; continued on one rank where two had begun."""
    two = common(model, data, tmp_path / "two", *steps(STEPS), "trainer.devices=2")
    one = common(model, data, tmp_path / "one", *steps(STEPS))
    cases = {
        "scoring": [f"@SIGTERM/1 {SCORED} 3", "reference", *two],
        "again": ["reference", *two],
        "step": [f"@SIGUSR1/1 {TRAINER}.train_step 3", "train", *two],
        "on": ["train", *two],
    }
    split = common(model, data, tmp_path / "split", *steps(STEPS), "trainer.devices=2")
    cases["begun"] = [f"@SIGINT/1 {SCORED} 2", "reference", *split]
    done = several(tmp_path / "logs", cases, ranks=2)
    assert_stopped(done["scoring"], "12 of 16 pairs are kept")
    assert done["again"].status == 0, done["again"].err
    assert "continuing, 12 of 16 pairs" in done["again"].out
    assert_stopped(done["step"], "after 3 of 6 steps")
    assert done["on"].status == 0, done["on"].err
    assert "resumed step_00000003" in done["on"].out
    alone = {
        "whole": ["reference", *one],
        "rest": ["reference", *split[:-1], "trainer.devices=1"],
    }
    last = several(tmp_path / "logs-one", alone)
    assert last["rest"].status == 0, last["rest"].err
    assert "continuing, 8 of 16 pairs" in last["rest"].out
    expected = rows(tmp_path / "one" / "reference")
    assert rows(tmp_path / "split" / "reference") == expected
    assert rows(tmp_path / "two" / "reference") == expected


# -- as a terminal, or a scheduler, does it ------------------------------------------------------


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + DEADLINE
    while not path.exists():
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.005)


def test_ctrl_c_in_a_terminal_on_one_rank(tmp_path: Path, model: Path, data: Path) -> None:
    """The whole foreground group gets it: helper processes of a checkpoint, too."""
    output = tmp_path / "run"
    with started("train", *common(model, data, output, *steps(5000))) as process:
        wait_for_step(process, output, 2)
        os.killpg(process.pid, signal.SIGINT)
        result = finish(process)
    assert_stopped(result, "of 5000 steps; the checkpoint")


@pytest.mark.nightly
def test_two_local_ranks_before_training(tmp_path: Path, model: Path, data: Path) -> None:
    output = tmp_path / "run"
    with started("train", *common(model, data, output, *steps(5000), "parallel=pp2")) as process:
        wait_for(output / "config.yaml", process)
        os.killpg(process.pid, signal.SIGINT)
        begun = time.monotonic()
        result = finish(process)
    assert_stopped(result, "stopped by")
    assert time.monotonic() - begun < 60


TWICE = """
import os, signal, sys
from nemo_gdpo.cli import main
from tests.support.signals_at import signal_at
with signal_at("SIGINT", "training.trainer:PreferenceTrainer.train_step", 2):
    with signal_at("SIGINT", "training.checkpoint_save:Saving.prepare"):
        sys.exit(main(sys.argv[1:]))
"""


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, model: Path, data: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE, "train", *common(model, data, tmp_path / "run", *steps(9))],
        env=clean_environment(), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nemo-gdpo: ")]
    assert "second Ctrl-C" in line
    assert "Traceback" not in done.stderr


def test_the_time_is_up(tmp_path: Path, model: Path, data: Path) -> None:
    """Far from its last step a run saves by itself, before its time, and the next one goes on."""
    output = tmp_path / "run"
    # Long enough to start and take a step where other tests fill the cores.
    limited = common(model, data, output, *steps(100000), "trainer.max_minutes=0.6")
    begun = time.monotonic()
    done = several(tmp_path / "logs", {"limited": ["train", *limited]})
    assert time.monotonic() - begun < DEADLINE
    assert_stopped(done["limited"], "stopped by the end of its time (trainer.max_minutes) after ")
    taken = metrics(output)[-1]["step"] + 1
    assert f"after {taken} of 100000 steps" in done["limited"].complaints[0]
    assert (output / "checkpoints" / f"step_{taken:08d}" / "manifest.json").is_file()
