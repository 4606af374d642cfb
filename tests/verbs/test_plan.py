"""`plan` as a command: its table, its JSON, the data it reads, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo import cli
from nemo_gdpo.data import build_dataset, save_prepared
from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR
from nemo_gdpo.plan.hardware import DEVICES
from tests.support.data import pairs, write_jsonl
from tests.support.models import llama3_tokenizer, save_model
from tests.support.ranks import ROOT

EXPERIMENT = "experiment=gdpo_llama3_8b"


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "TRAIN", "VALIDATION", "OUTPUT"):
        monkeypatch.delenv(f"NEMO_GDPO_{name}", raising=False)


def report(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What --json prints: JSON alone."""
    assert cli.main(["plan", "--json", *words]) == EXIT_DONE
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["plan", *words]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("nemo-gdpo: error: ").rstrip("\n")


def test_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, EXPERIMENT, "hardware=h100x16")
    assert "predictions" in found["kind"]
    assert found["mesh"] == {
        "tensor": 4, "pipeline": 1, "context": 1, "data": 4, "micro_batch_size": 1,
        "recompute": "selective",
    }  # fmt: skip
    assert found["layout_is_configured"] and found["fits"]
    (stage,) = found["stages"]
    # 8.03e9 parameters over TP4: 2 bytes, 4 bytes, 12 bytes over DP4.
    assert (stage["weights"], stage["gradients"], stage["optimizer"]) == (4.02, 8.03, 6.02)
    assert found["left_gb"] == pytest.approx(80 - stage["total"], abs=0.01)
    assert found["activations_gb"]["none"] > found["activations_gb"]["selective"]
    assert found["activations_gb"]["selective"] > found["activations_gb"]["full"]
    assert found["disk_gb"]["checkpoint"] == pytest.approx(14 * 8.030261248, abs=0.01)
    assert found["data"]["assumed"]
    assert "every sequence has 1024 tokens" in found["data"]["source"]


def test_speed_is_tokens_over_time(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, EXPERIMENT, "hardware=h100x16", "trainer.max_steps=60")
    row, tokens = found["rows"]["padded"], 128 * found["data"]["tokens_a_pair"]
    assert row["tokens_per_second"] == pytest.approx(tokens / row["update_seconds"], rel=1e-3)
    assert row["tokens_per_second_per_gpu"] * 16 == pytest.approx(row["tokens_per_second"], abs=16)
    # No faster than the share of the peak allows.
    flops = found["flops_per_token"]["update"]
    assert row["tokens_per_second_per_gpu"] * flops / 989.5e12 < 0.41
    assert found["data"]["updates"] == 60
    assert row["gpu_hours"] == pytest.approx(16 * row["hours"], rel=1e-3)


def test_what_no_layout_would_mend_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, EXPERIMENT, "hardware=h100x16", "trainer.max_steps=10")
    assert said.startswith("optim.sched.warmup_steps: ")
    padded = ("data.packing=false", "data.prefix_sharing=true")
    said = refusal(capsys, EXPERIMENT, "hardware=h100x16", *padded)
    assert said.startswith("data.prefix_sharing: prompts are shared in packed rows only")


def test_layouts_are_ranked_and_fit(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "experiment=gdpo_llama3_70b", "hardware=h100x64")
    assert [len(found["stages"]), found["mesh"]["data"]] == [4, 2]
    layouts = found["layouts"]
    speeds = [one["tokens_per_second"] for one in layouts]
    assert len(layouts) == 5 and speeds == sorted(speeds, reverse=True)
    for one in layouts:
        assert one["tensor"] * one["pipeline"] * one["context"] * one["data"] == 64
        assert one["memory_gb"] <= 80
    # The best one, taken over, is the layout that is shown then.
    again = report(
        capsys, "experiment=gdpo_llama3_70b", "hardware=h100x64", *layouts[0]["overrides"].split()
    )
    assert again["layout_is_configured"] and again["fits"]
    assert again["fullest"]["total"] == layouts[0]["memory_gb"]
    assert again["rows"]["packed"]["tokens_per_second"] == pytest.approx(speeds[0], rel=0.01)


def test_the_next_better_thing_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("experiment=gdpo_llama3_8b", "hardware=h100x16")
    before = report(capsys, *words)
    after = report(capsys, *words, *before["next"]["change"].split())
    speeds = [one["rows"]["packed"]["tokens_per_second"] for one in (before, after)]
    assert speeds[1] / speeds[0] == pytest.approx(before["next"]["gain"], abs=0.02)
    assert before["next"]["gain"] > 1.02


def test_a_layout_that_cannot_be_had_here(capsys: pytest.CaptureFixture[str]) -> None:
    """TP8 x PP4 on 8 devices: it says why, and shows the best that can."""
    found = report(capsys, "experiment=gdpo_llama3_70b", "hardware=b300x8")
    assert not found["layout_is_configured"] and found["fits"]
    assert "8 ranks cannot be cut into copies of TP8 x PP4" in found["problems_of_configured"][0]


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Overrides of a run whose model and pairs are here."""
    model = save_model(tmp_path / "model")
    file = write_jsonl(tmp_path / "pairs.jsonl", pairs(24))
    return [
        f"model.restore_from_path={model}", f"data.train_path={file}", "data.max_length=128",
        "data.max_prompt_length=64", "precision=bf16", "model.micro_batch_size=2",
    ]  # fmt: skip


def test_a_file_of_pairs(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, *small, "hardware=h100x1")
    assert not found["data"]["assumed"]
    assert (found["data"]["pairs"], found["data"]["updates"]) == (24, 3)
    rows = found["rows"]
    assert rows["packed"]["slots_a_token"] > rows["shared"]["slots_a_token"]
    # Rows of eights: few positions more than there are tokens.
    left = found["data"]["tokens_with_shared_prompts"]
    assert rows["shared"]["slots_a_token"] == pytest.approx(left, rel=0.05)
    assert rows["packed"]["tokens_per_second"] < rows["shared"]["tokens_per_second"]
    assert rows["padded"]["slots_a_token"] > rows["packed"]["slots_a_token"] >= 1
    assert rows["padded"]["update_seconds"] > rows["packed"]["update_seconds"]
    assert 0 < found["data"]["tokens_with_shared_prompts"] < 1


def test_prompts_that_cannot_be_shared(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*small, "model.context_parallel_size=2", "hardware=h100x2")
    rows = report(capsys, *words)["rows"]
    assert rows["shared"]["problem"].startswith("data.prefix_sharing: ")
    assert "tokens_per_second" in rows["packed"]


def test_a_run_that_shares_prompts_is_its_row(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = report(capsys, *small, "hardware=h100x1")
    words = ("data.packing=true", "data.prefix_sharing=true")
    shared = report(capsys, *small, *words, "hardware=h100x1")
    assert shared["rows"] == plain["rows"]
    assert shared["flops_per_token"]["update"] < plain["flops_per_token"]["update"]


def test_adapters_on_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    """8.03e9 frozen parameters and 41.9e6 of adapters: 2 bytes, and 4 and 12 of the latter."""
    found = report(capsys, "experiment=gdpo_llama3_8b_lora", "hardware=h100x1")
    (stage,) = found["stages"]
    assert stage["weights"] == pytest.approx(2 * (8.030261 + 0.041943), abs=0.01)
    assert stage["gradients"] == pytest.approx(4 * 0.041943, abs=0.01)
    assert stage["optimizer"] == pytest.approx(12 * 0.041943, abs=0.01)
    assert stage["reference"] == 0  # adapter_off
    assert found["fits"] and found["layout_is_configured"]
    assert found["disk_gb"]["checkpoint"] == pytest.approx(14 * 0.041943, abs=0.01)
    assert found["disk_gb"]["adapter"] == pytest.approx(2 * 0.041943, abs=0.01)
    whole = report(capsys, "experiment=gdpo_llama3_8b", "hardware=h100x16")
    forward = found["flops_per_token"]["forward"]
    assert forward == whole["flops_per_token"]["forward"]
    assert 2 * forward < found["flops_per_token"]["update"] < 2.1 * forward
    assert cli.main(["plan", "experiment=gdpo_llama3_8b_lora", "hardware=h100x1"]) == EXIT_DONE
    assert "export 16.1 GB, adapter 0.08 GB" in capsys.readouterr().out


def test_a_base_in_nf4(capsys: pytest.CaptureFixture[str]) -> None:
    """6.98e9 numbers of matrices in 0.5625 bytes; all of them in two before they are quantised."""
    words = ("experiment=gdpo_llama3_8b_lora", "lora.base_precision=nf4", "hardware=h100x1")
    found = report(capsys, *words)
    (stage,) = found["stages"]
    whole = 2 * (8.030261 + 0.041943)
    assert found["loading_gb"] == pytest.approx(whole, abs=0.01)
    assert stage["weights"] == pytest.approx(whole - 6.979322 * (2 - 0.5625), abs=0.01)
    assert cli.main(["plan", *words]) == EXIT_DONE
    assert "at the start: 16.1 GB of weights, before they are" in capsys.readouterr().out
    plain = report(capsys, "experiment=gdpo_llama3_8b_lora", "hardware=h100x1")
    assert plain["loading_gb"] == 0


def test_a_swapped_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """Twice 2 bytes of 8.03e9 / 4 parameters, of the 8 ranks of a node, and nothing on a device."""
    words = (EXPERIMENT, "hardware=h100x16")
    cached, found = report(capsys, *words), report(capsys, *words, "reference=swap")
    assert found["stages"] == cached["stages"]
    assert found["host_gb_a_node"] == pytest.approx(8 * 2 * 2 * 8.0303 / 4, abs=0.05)
    assert cached["host_gb_a_node"] == 0
    resident = report(capsys, *words, "reference=resident")["rows"]["padded"]
    swapped = found["rows"]["padded"]
    # 3 x 4.02 GB at 64 GB/s more than a copy on the device takes.
    more = swapped["update_seconds"] - resident["update_seconds"]
    assert more == pytest.approx(3 * 2 * 8.0303 / 4 / 64, abs=0.002)
    assert cli.main(["plan", *words, "reference=swap"]) == EXIT_DONE
    assert "host memory: 64.3 GB a node" in capsys.readouterr().out


def test_a_prepared_directory_has_the_same_lengths(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = build_dataset(
        tmp_path / "pairs.jsonl", llama3_tokenizer(), max_prompt_length=64, max_length=128
    )
    prepared = save_prepared(data, tmp_path / "prepared")
    tokens = sum(2 * len(p.prompt_ids) + len(p.chosen.ids) + len(p.rejected.ids) for p in data)
    found = report(capsys, *small, f"data.train_path={prepared}", "hardware=h100x1")
    assert found["data"]["source"] == str(prepared)
    assert found["data"]["tokens_a_pair"] == pytest.approx(tokens / 24, abs=0.1)


def test_no_speed_is_made_up_for_fp32(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, *small, "precision=fp32", "hardware=h100x1")
    assert "tokens_per_second" not in found["rows"]["padded"]
    assert found["hardware"]["assumed_share_of_peak"] is None
    assert cli.main(["plan", *small, "precision=fp32", "hardware=h100x1"]) == EXIT_DONE
    assert "is not predicted for fp32" in capsys.readouterr().out
    assert found["layouts"] and found["layouts"][0]["tokens_per_second"] is None
    memory = [one["memory_gb"] for one in found["layouts"]]
    assert memory == sorted(memory)


def test_what_does_not_fit_as_configured(capsys: pytest.CaptureFixture[str]) -> None:
    """One rank for all of 8B on each of two: the change is the layout that fits."""
    words = (EXPERIMENT, "parallel=single", "hardware=h100x2", "model.sequence_parallel=false")
    found = report(capsys, *words)
    assert not found["fits"] and found["left_gb"] < 0
    assert found["next"]["gain"] is None
    assert report(capsys, *words, *found["next"]["change"].split())["fits"]
    assert cli.main(["plan", *words]) == EXIT_DONE
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out and "(would fit)" in out


def test_little_that_is_left_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "experiment=gdpo_gemma2_9b", "hardware=a100-40x8"]) == EXIT_DONE
    assert "fits, 0.0 GB left (less than 5 %: it may not)" in capsys.readouterr().out


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", EXPERIMENT, "hardware=h100x16"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PREDICTIONS")
    named = {line.split()[0] for line in lines if line.strip()}
    assert {
        "weights", "gradients", "optimizer", "activations", "head", "buffers", "FLOPs", "padded",
        "packed", "shared", "disk", "next",
    } <= named  # fmt: skip


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    (command, printed) = re.findall(
        r"^```\n(nemo-gdpo plan .*)\n```\n\n```text\n([^`]*)```", page, re.M
    )[0]
    assert cli.main(command.split()[1:]) == EXIT_DONE
    assert capsys.readouterr().out == printed


def test_hardware_that_is_not_given_or_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    missing = refusal(capsys, EXPERIMENT)
    assert missing.startswith("hardware: is not given; write DEVICExNUMBER, as hardware=h100x16")
    assert all(device.name in missing for device in DEVICES)
    assert refusal(capsys, EXPERIMENT, "hardware=v100x8").startswith("hardware=v100x8: is not a k")
    twice = refusal(capsys, EXPERIMENT, "hardware=h100x8", "hardware=h100x16")
    assert twice.startswith("hardware: is given twice")


def test_hardware_on_which_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """And what it says would fit, does."""
    said = refusal(capsys, "experiment=gdpo_llama3_70b", "hardware=a100-40x4")
    assert said.startswith("hardware=a100-40x4: no layout of this run fits into 40 GB, by predic")
    fitting = dict(word.rsplit("x", 1) for word in said.partition("would fit: ")[2].split(", "))
    assert fitting.keys() == {device.name for device in DEVICES}
    enough = report(capsys, "experiment=gdpo_llama3_70b", f"hardware=h100x{fitting['h100']}")
    assert enough["layouts"]
    half = int(fitting["h100"]) // 2
    assert "would fit" in refusal(capsys, "experiment=gdpo_llama3_70b", f"hardware=h100x{half}")


def test_fp8_on_devices_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, EXPERIMENT, "precision=fp8_tensorwise", "hardware=a100-80x8")
    assert said.startswith("precision: a100-80 has no FP8 tensor cores (hardware=a100-80x8)")


def test_a_model_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "precision=bf16", "hardware=h100x8")
    assert said.startswith("model.restore_from_path: no architecture can be read")
    assert "model.architecture=llama3_8b|" in said


def test_no_cluster_is_planned_for_a_rehearsal(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, EXPERIMENT, "precision=fp8_rehearsal_blockwise", "hardware=h100x16")
    assert said.startswith("precision: fp8_rehearsal_blockwise rounds in fp32 and says nothing of")
