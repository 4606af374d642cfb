"""What an operator sees of `nemo-gdpo train`: lines, summary, logs, card; and after a hard stop."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.support.commands import (
    Result,
    common,
    finish,
    metrics,
    several,
    started,
    steps,
    wait_for_step,
)
from tests.support.data import pairs, write_jsonl

pytestmark = pytest.mark.parallel

STEPS = 12
ADPO = ["objective=adpo", "objective.gamma=0.05"]


def arguments(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return ["train", *common(model, data, output, *steps(STEPS), *ADPO, *more)]


def records(output: Path, rank: int = 0) -> list[dict[str, Any]]:
    text = (output / "logs" / f"rank_{rank:05d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def summary_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def whole(root: Path, model: Path, data: Path) -> tuple[Result, Path]:
    """A run to its end, with everything on."""
    held_out = write_jsonl(root / "held-out.jsonl", pairs(6, seed=9))
    output = root / "whole"
    done = several(
        root / "output",
        {
            "whole": arguments(
                model, data, output, f"data.validation_path={held_out}",
                "trainer.val_check_interval=4", "trainer.save_interval=6",
                "logger.every_n_steps=5", "export_hf=true", "logger.peak_tflops=0.5",
            ),
            "no_peak": arguments(model, data, root / "no-peak", "reference=resident"),
        },
    )  # fmt: skip
    assert done["no_peak"].status == 0, done["no_peak"].err
    assert done["whole"].status == 0, done["whole"].err
    return done["whole"], output


def test_a_log_file_has_lines_and_no_bar(whole: tuple[Result, Path]) -> None:
    result, _ = whole
    told = re.findall(r"^step (\d+) of 12: (.*)$", result.out, re.MULTILINE)
    assert [int(step) for step, _ in told] == [1, 5, 10, 12]
    for _, text in told:
        assert re.match(
            r"loss \d\.\d{4}, margin -?\d+\.\d{3}, accuracy \d\.\d\d, lr \d\.\d\de[-+]\d\d, "
            r"\d+ tokens/s, \d+\.\d GiB(, .+ left)?$",
            text,
        ), text
    assert [" left" in text for _, text in told] == [False, True, True, False]
    assert re.findall(r"^validation after (\d+) steps: loss", result.out, re.MULTILINE) == [
        "4", "8", "12",
    ]  # fmt: skip
    assert "it/s" not in result.err and "\r" not in result.err


def test_columns_of_speed(whole: tuple[Result, Path]) -> None:
    entries = metrics(whole[1])
    for entry in entries:
        assert 0 < entry["perf/data_seconds"] < entry["perf/step_seconds"]
        assert entry["perf/tokens_per_second_per_gpu"] == entry["perf/tokens_per_second"]
        assert entry["perf/model_tflops_per_gpu"] > 0
        assert entry["perf/mfu"] == pytest.approx(entry["perf/model_tflops_per_gpu"] / 0.5)
    # Of the checkpoint after six updates, in the next update's line.
    assert [e["step"] for e in entries if "perf/checkpoint_seconds" in e] == [6]
    assert [e["step"] for e in entries if "perf/validation_seconds" in e] == [3, 7, 11]


def test_the_flops_are_those_of_the_pairs(whole: tuple[Result, Path]) -> None:
    """A resident reference is a fourth pass; TFLOP/s times seconds is what a step computed."""
    cached, resident = (
        [e["perf/model_tflops_per_gpu"] * e["perf/step_seconds"] for e in metrics(output)]
        for output in (whole[1], whole[1].parent / "no-peak")
    )
    assert resident == pytest.approx([value * 4 / 3 for value in cached], rel=1e-9)


def test_an_unknown_peak_is_told_once(whole: tuple[Result, Path]) -> None:
    output = whole[1].parent / "no-peak"
    assert not any("perf/mfu" in entry for entry in metrics(output))
    speed = summary_of(output)["speed"]
    assert speed["mfu"] is None
    assert "the peak of cpu in fp32 is not known" in speed["why_no_mfu"]


def test_the_summary(whole: tuple[Result, Path]) -> None:
    result, output = whole
    summary, entries = summary_of(output), metrics(output)
    assert summary["outcome"] == "done"
    assert (summary["steps"], summary["of_steps"], summary["pairs"]) == (12, 12, 48)
    assert summary["tokens"] == entries[-1]["num_tokens"]
    assert summary["label_queries"] == entries[-1]["adpo/queries_total"]
    validated = {e["step"] + 1: e["val/loss"] for e in entries if "val/loss" in e}
    best = min(validated, key=lambda step: validated[step])
    assert summary["validation"]["best"]["step"] == best
    assert summary["validation"]["best"]["loss"] == validated[best]
    assert summary["validation"]["last"]["step"] == 12
    assert summary["seconds"]["by_stage"].keys() == {
        "starting", "model", "tokenising", "reference", "training", "validation", "checkpoints",
        "export",
    }  # fmt: skip
    assert summary["seconds"]["by_stage"]["training"] == pytest.approx(
        sum(entry["perf/step_seconds"] for entry in entries), rel=0.5
    )
    for name in ("checkpoint", "hf", "metrics", "logs", "configuration"):
        assert Path(summary[name]).exists(), name
    lines = result.out.splitlines()
    begin = lines.index("done: 12 of 12 steps")
    assert lines[begin + 1].startswith("  seen         48 pairs (3.00 epochs), ")
    assert any(line.startswith("  wall time ") for line in lines[begin:])
    assert f"  checkpoint   {summary['checkpoint']}" in lines[begin:]


def test_the_log_of_the_rank(whole: tuple[Result, Path]) -> None:
    found = records(whole[1])
    assert found[0]["message"] == "start"
    assert (found[0]["device"], found[0]["world_size"], found[0]["objective"]) == ("cpu", 1, "adpo")
    stages = [record["stage"] for record in found if record["message"] == "begins"]
    assert stages[:4] == ["model", "tokenising", "model", "reference"]
    assert stages[-2:] == ["training", "export"]
    assert stages.count("checkpoints") == 2
    assert any("12 of 12 steps" in record["message"] for record in found)


def test_the_card(whole: tuple[Result, Path], model: Path, data: Path) -> None:
    card = ModelCard.load(whole[1] / "hf" / "README.md")
    assert card.data.base_model == "tiny-llama"
    assert card.data.tags == ["nemo_gdpo", "adpo"]
    for line in (
        "- learning_rate: 0.001",
        "- global_batch_size: 4",
        "- steps: 12 of 12",
        "- epochs: 3.0",
        "- max_length: 96",
        "- schedule: CosineAnnealing",
        "- seed: 1234",
        "- gamma: 0.05",
        "- name: train.jsonl",
        "- name: held-out.jsonl",
        "fp32",
        "## Best validation",
        "## Last validation",
    ):
        assert line in card.text, line
    for secret in (str(model.parent), str(data.parent), str(whole[1].parent), "/tmp/"):
        assert secret not in card.content


def test_the_card_shows_how_to_use_it(whole: tuple[Result, Path]) -> None:
    """As printed, in the export's directory."""
    hf = whole[1] / "hf"
    (snippet,) = re.findall(r"```python\n(.*?)```", (hf / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=hf, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_every_rank_has_its_log_and_one_speaks(root: Path, model: Path, data: Path) -> None:
    output = root / "pp2"
    done = several(
        root / "output-pp2",
        {"pp2": arguments(model, data, output, "parallel=pp2", "trainer.max_steps=2")},
        ranks=2,
    )["pp2"]
    assert done.status == 0, done.err
    silent = (root / "output-pp2" / "0.out.rank1").read_text()
    assert "step 1 of 2: " in done.out and silent == ""
    for rank in (0, 1):
        start = records(output, rank)[0]
        assert (start["rank"], start["world_size"]) == (rank, 2)
        assert start["layout"] == "TP1 PP2 CP1 DP1"
    for entry in metrics(output):
        assert entry["perf/tokens_per_second_per_gpu"] == entry["perf/tokens_per_second"] / 2
    assert [start["world_size"] for start in summary_of(output)["starts"]] == [2]


def test_a_hard_stop_and_another_start(root: Path, model: Path, data: Path) -> None:
    """Killed between two checkpoints: time adds up, and no step is in TensorBoard twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = root / "killed"
    command = arguments(
        model, data, output, "trainer.save_interval=3", "logger.tensorboard=true",
        "trainer.max_steps=60",
    )  # fmt: skip
    with started(*command) as process:
        wait_for_step(process, output, 7)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    with started(*command) as process:
        second = finish(process)
    assert second.status == 0, second.err
    resumed = re.search(r"resumed step_0*(\d+)", second.out)
    assert resumed is not None
    assert re.search(rf"^step {int(resumed[1]) + 1} of 60: ", second.out, re.MULTILINE)
    events = EventAccumulator(str(output / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(60))
    assert [entry["step"] for entry in metrics(output)] == list(range(60))
    summary = summary_of(output)
    first, last = summary["starts"]
    assert (first["ended"], last["ended"]) == (None, "done")
    assert (last["first_step"], last["steps"]) == (int(resumed[1]), 60)
    assert summary["seconds"]["by_stage"]["starting"] == pytest.approx(
        first["seconds"]["starting"] + last["seconds"]["starting"], abs=0.2
    )
    assert [r["message"] for r in records(output)].count("start") == 2
    assert " in 2 starts: " in second.out


def test_a_stopped_run_has_its_summary(root: Path, model: Path, data: Path) -> None:
    output = root / "stopped"
    command = arguments(model, data, output, "trainer.max_steps=500")
    with started(*command) as process:
        wait_for_step(process, output, 2)
        process.send_signal(signal.SIGTERM)
        result = finish(process)
    assert result.status == 75, result.err
    summary = summary_of(output)
    assert summary["outcome"] == "stopped"
    assert summary["steps"] == len(metrics(output))
    assert Path(summary["checkpoint"]).is_dir()
    assert f"stopped: {summary['steps']} of 500 steps" in result.out.splitlines()


def test_an_error_is_a_line_here_and_a_traceback_there(root: Path, model: Path, data: Path) -> None:
    """A file where the checkpoints should be: found when the first one is written."""
    output = root / "failing"
    output.mkdir()
    (output / "checkpoints").write_text("in the way")
    with started(*arguments(model, data, output)) as process:
        result = finish(process)
    assert result.status == 1, result.err
    assert "Traceback" not in result.err
    (error,) = [r for r in records(output) if r["level"] == "error"]
    assert error["message"].startswith("CheckpointError: could not start a checkpoint")
    assert "Traceback" in error["traceback"]
