"""Bad input: one clear line, exit status 2, no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_gdpo.launch.ports import free_port
from tests.support.commands import Result, cli, common, several, steps
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.ranks import rank_environment


def _copy(model: Path, target: Path) -> Path:
    return Path(shutil.copytree(model, target))


def _pair(**changes: Any) -> list[Any]:
    rows = pairs(8)
    rows[2] |= changes
    return rows


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


EXPECTED: dict[str, tuple[str, ...]] = {
    "missing_file": ("data.train_path", "does not exist"),
    "empty_file": ("data.train_path", "is empty"),
    "blank_file": ("blank.jsonl", "no "),
    "malformed_line": ("malformed.jsonl", "line 3"),
    "empty_response": ("empty_response.jsonl", "line 3"),
    "identical_pair": ("identical_pair.jsonl", "line 3"),
    "no_scores": ("no_scores.jsonl", "line 1", "score"),
    "model_without_weights": ("model.restore_from_path", "no weights"),
    "pickled_weights": ("model.restore_from_path", "pickled", "safetensors"),
    "truncated_weights": ("model.safetensors",),
    "model_is_missing": ("model.restore_from_path", "does not exist"),
    "big_tokenizer": ("tokenizer", "embedding"),
    "tp_and_groups": ("model.tensor_model_parallel_size", "2 key-value groups"),
    "pp_and_layers": ("model.pipeline_model_parallel_size", "2 layers"),
    "odd_batch": ("model.global_batch_size", "2"),
    "sequence_parallel": ("model.sequence_parallel", "tensor_model_parallel_size"),
    "fp8": ("precision", "GPU", "use bf16, fp32"),
    "batch_above_pairs": ("model.global_batch_size=12", "8 pairs"),
    "unknown_key": ("optim.learning_rate", "not a key"),
    "long_context": ("data.max_length", "256 positions"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> dict[str, Result]:
    root = tmp_path_factory.mktemp("bad")

    def train(name: str, *more: str, of: Path = model, on: Path = data) -> list[str]:
        return ["train", *common(of, on, root / name, *steps(2), *more)]

    def on(name: str, rows: list[Any]) -> list[str]:
        return train(name, on=write_jsonl(root / f"{name}.jsonl", rows))

    (root / "empty.jsonl").touch()
    (root / "blank.jsonl").write_text("\n\n")
    bare = _copy(model, root / "bare")
    (bare / "model.safetensors").unlink()
    pickled = _copy(bare, root / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    torn = _copy(model, root / "torn")
    (torn / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    small = save_model(root / "small", vocab_size=300)
    lines: list[Any] = [json.dumps(row) for row in pairs(8)]
    lines[2] = lines[2][:40]
    return several(
        root / "logs",
        {
            "missing_file": train("missing_file", on=root / "nowhere.jsonl"),
            "empty_file": train("empty_file", on=root / "empty.jsonl"),
            "blank_file": train("blank_file", on=root / "blank.jsonl"),
            "malformed_line": on("malformed", lines),
            "empty_response": on("empty_response", _pair(rejected=_said(""))),
            "identical_pair": on(
                "identical_pair", _pair(chosen=_said("a b"), rejected=_said("a b"))
            ),
            "no_scores": [*on("no_scores", pairs(8, scores=False)), "objective=odpo"],
            "model_without_weights": train("model_without_weights", of=bare),
            "pickled_weights": train("pickled_weights", of=pickled),
            "truncated_weights": train("truncated_weights", of=torn),
            "model_is_missing": train("model_is_missing", of=root / "no-model"),
            "big_tokenizer": train("big_tokenizer", of=small),
            "tp_and_groups": train("tp", "model.tensor_model_parallel_size=4"),
            "pp_and_layers": train("pp", "model.pipeline_model_parallel_size=3"),
            "odd_batch": train("odd_batch", "model.global_batch_size=5"),
            "sequence_parallel": train("sp", "model.sequence_parallel=true"),
            "fp8": train("fp8", "precision=fp8_tensorwise"),
            "batch_above_pairs": [*on("few", pairs(8)), "model.global_batch_size=12"],
            "unknown_key": train("unknown_key", "optim.learning_rate=1"),
            "long_context": train("long_context", "data.max_length=512"),
        },
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_one_clear_line(results: dict[str, Result], name: str) -> None:
    result = results[name]
    assert result.status == 2, f"{result.status}: {result.out[-300:]} {result.err[-1500:]}"
    (line,) = result.complaints
    assert line.startswith("nemo-gdpo: error: ")
    for word in EXPECTED[name]:
        assert word in line, line
    assert "Traceback" not in result.err


@pytest.mark.parallel
def test_two_ranks_say_it_once(tmp_path: Path, model: Path) -> None:
    """Found by one rank after all have joined: the others must neither hang nor repeat it."""
    bad = write_jsonl(tmp_path / "bad.jsonl", _pair(rejected=_said("")))
    result = cli("train", *common(model, bad, tmp_path / "out", *steps(2), "parallel=pp2"))
    assert result.status == 2, result.err
    (line,) = result.complaints
    assert "line 3" in line
    assert "Traceback" not in result.err


@pytest.mark.parallel
def test_ranks_with_different_configurations_are_refused(
    tmp_path: Path, model: Path, data: Path
) -> None:
    """Another variable on one node would otherwise train half of the ranks with another setting."""
    port, output = free_port(), tmp_path / "out"
    arguments = common(model, data, output, *steps(2), "parallel=pp2")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "nemo_gdpo", "train", *arguments, f"seed={rank + 1}"],
            env=rank_environment(rank, 2, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=150)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    assert errors[1] == ""  # one rank speaks for all
    assert errors[0] == (
        "nemo-gdpo: error: the ranks were started with different configurations (seed: 1 on rank "
        "0, 2 on rank 1); give every rank the same arguments and environment variables\n"
    )
    assert not output.exists()


@pytest.mark.parallel
@pytest.mark.parametrize("blind", [0, 1])
def test_a_node_that_lacks_a_file_is_named(
    tmp_path: Path, model: Path, data: Path, blind: int
) -> None:
    """Each rank checks its files before they meet; one would wait for the other in vain."""
    port, output = free_port(), tmp_path / "out"
    files = {blind: tmp_path / "not-here.jsonl", 1 - blind: data}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "nemo_gdpo", "train",
             *common(model, files[rank], output, *steps(2), "parallel=pp2")],
            env=rank_environment(rank, 2, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        errors = [rank.communicate(timeout=150)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    assert errors[1] == ""  # one rank speaks for all
    assert errors[0] == (
        f"nemo-gdpo: error: rank {blind}: data.train_path: {files[blind]} does not exist; correct "
        "the path (starting)\n"
    )
    assert not output.exists()
