"""Comparing two checkpoints by what they say: numbers by hand, against transformers, reports."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.cli import main
from nemo_gdpo.conversion.compare import logits as logits_module
from nemo_gdpo.conversion.compare.logits import compare_logits, hf_logits
from nemo_gdpo.conversion.compare.memory import available_bytes, check_fits, parameter_count
from nemo_gdpo.conversion.compare.prompts import BUILT_IN, make_prompts, read_texts
from nemo_gdpo.conversion.families import read_hf_config
from nemo_gdpo.errors import UserError
from tests.support import models
from tests.support.models import save_model

pytest.importorskip("megatron.core.package_info")
from nemo_gdpo.training.parity import megatron_logits


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf`, a tiny Llama with a tokenizer, and `megatron`, its conversion."""
    directory = tmp_path_factory.mktemp("verify")
    save_model(directory / "hf")
    assert main(["hf-to-megatron", str(directory / "hf"), str(directory / "megatron")]) == 0
    return directory


def test_numbers_worked_by_hand() -> None:
    """Two tokens, vocabulary of two; logits [0, 0], [0, 0] against [0, 0], [ln 3, 0]."""
    one = torch.zeros(3, 2)
    other = torch.zeros(3, 2)
    other[1, 0] = math.log(3)
    ids = torch.tensor([0, 1, 1])
    found = compare_logits([one], [other], [ids], "by hand")
    assert found.positions == 3
    assert found.max_abs_difference == pytest.approx(math.log(3))
    assert found.mean_abs_difference == pytest.approx(math.log(3) / 6)
    assert found.argmax_agreement == 1.0  # a tie goes to the first
    # After the second token: log 1/2 against log 1/4; after the first both say log 1/2.
    assert found.max_logprob_gap == pytest.approx(math.log(2))
    assert found.mean_logprob_gap == pytest.approx(math.log(2) / 2)
    assert found.within(1.1)
    assert not found.within(1.09)
    other[1, 1] = 5.0
    assert compare_logits([one], [other], [ids], "x").argmax_agreement == pytest.approx(2 / 3)
    other[0, 0] = math.nan
    with pytest.raises(UserError, match="not finite"):
        compare_logits([one], [other], [ids], "x")


@pytest.mark.parametrize("kind", ["gemma2", "llama_llama3"])
def test_megatron_against_transformers(tmp_path: Path, kind: str) -> None:
    source = models.save(kind, tmp_path / "hf")
    status = main(
        [
            "hf-to-megatron",
            str(source),
            str(tmp_path / "megatron"),
            "--verify",
            "--tolerance",
            "1e-4",
            "--report",
            str(tmp_path / "report"),
        ],
        megatron_logits=megatron_logits,
    )
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert status == 0, found
    assert found["logits"]["argmax_agreement"] == 1.0
    assert "random ids: neither side has a tokenizer that loads" in found["logits"]["prompts"]


def test_own_tokenizer_and_prompts_of_a_file(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a good film\n\nit was very dull and long\n")
    sides = [str(root / "hf"), str(root / "megatron")]
    for more, what in (([], "8 built-in texts"), (["--prompts", str(prompts)], "2 texts of")):
        assert main(["verify", *sides, *more], megatron_logits=megatron_logits) == 0
        assert what in capsys.readouterr().out


def test_a_difference_shows_in_both_halves(root: Path, tmp_path: Path) -> None:
    """One weight of the last norm is doubled."""
    changed = tmp_path / "changed"
    shutil.copytree(root / "hf", changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"][3] *= 2
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    report = tmp_path / "report"
    status = main(
        ["verify", str(changed), str(root / "megatron"), "--report", str(report)],
        megatron_logits=megatron_logits,
    )
    assert status == 1
    found = json.loads((report / "report.json").read_text())
    assert not found["same"]
    assert [d["name"] for d in found["tensors"]["differences"]] == ["model.norm.weight"]
    assert found["logits"]["max_abs_difference"] > 0.01
    assert not found["logits"]["within_tolerance"]
    # What is reported is the truth: the same from transformers alone.
    config = read_hf_config(changed)
    prompts = make_prompts(config, None, None).ids
    sides = [
        hf_logits(directory, ModelBridge(config), prompts) for directory in (changed, root / "hf")
    ]
    assert max((a - b).abs().max() for a, b in zip(*sides, strict=True)) > 0.01
    text = (report / "report.md").read_text()
    assert "**not** the same model" in text
    assert "model.norm.weight differs: values" in text
    assert f"{found['logits']['max_abs_difference']:.3e}" in text


def test_tensors_may_be_equal_and_logits_not(root: Path) -> None:
    """A Megatron model that computes something else is what verify is for."""

    def wrong(checkpoint: Path, prompts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [logits * 1.01 for logits in megatron_logits(checkpoint, prompts)]

    sides = [str(root / "hf"), str(root / "megatron")]
    assert main(["verify", *sides], megatron_logits=wrong) == 1
    assert main(["verify", *sides, "--tensors-only"], megatron_logits=wrong) == 0


def test_bad_input_is_one_line_and_status_2(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [str(root / "hf"), str(root / "megatron")]
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    file = tmp_path / "file"
    file.write_text("x")
    cases = [
        (["verify", sides[0], str(tmp_path / "absent")], "does not exist"),
        (["verify", *sides, "--prompts", str(empty)], "has no prompts"),
        (["verify", *sides, "--prompts", str(tmp_path / "absent")], "cannot be read"),
        (["verify", *sides, "--report", str(file)], "the report cannot be written"),
        (["hf-to-megatron", sides[0], str(tmp_path / "m"), "--report", "x"], "add --verify"),
        (
            ["hf-to-megatron", sides[0], str(tmp_path / "m"), "--verify", "--dtype", "bf16"],
            "leave one out",
        ),
    ]
    for argv, message in cases:
        assert main(argv, megatron_logits=megatron_logits) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert main(["verify", *sides]) == 2  # nobody here can run a Megatron checkpoint
    assert "--tensors-only" in capsys.readouterr().err
    monkeypatch.setattr(logits_module, "available_bytes", lambda: 1000)
    assert main(["verify", *sides], megatron_logits=megatron_logits) == 2
    assert "GiB of memory are free" in capsys.readouterr().err


def test_memory_that_a_model_takes(root: Path) -> None:
    config = read_hf_config(root / "hf")
    tensors = load_file(root / "hf" / "model.safetensors")
    count = sum(tensor.numel() for tensor in tensors.values())
    bridge = ModelBridge(config)
    assert parameter_count(bridge) == count
    needed = int(1.15 * 4 * count) + 12 * 10 * config.vocab_size
    check_fits(bridge, 10, root, needed)
    with pytest.raises(UserError, match="use a larger machine"):
        check_fits(bridge, 10, root, needed - 1)
    assert 2**28 < available_bytes() < 2**50


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\n\n  \ntwo\n")
    assert read_texts(path) == ("one", "two")
    path.write_bytes("\ufeffone\u2028more\r\ntwo\x0cmore\r\n".encode())
    assert read_texts(path) == ("one\u2028more", "two\x0cmore")
    assert len(set(BUILT_IN)) == 8
    config = zoo_config()
    assert [len(ids) for ids in make_prompts(config, None, None).ids] == [48] * 4
    with pytest.raises(UserError, match="neither checkpoint has a tokenizer"):
        make_prompts(config, None, path)
    for ids, message in (
        ([1], "prompt 1 has 1 tokens"),
        ([1] * 200, "prompt 1 has 200 tokens"),
        ([1, 101], "prompt 1 has the token 101, and the embedding has only 101 rows"),
    ):
        with pytest.raises(UserError, match=message):
            make_prompts(config, lambda text, ids=ids: {"input_ids": ids}, path)


def zoo_config():  # type: ignore[no-untyped-def]
    from nemo_gdpo.conversion.families import FAMILIES

    values = models.configuration("llama_tied").to_dict()
    return FAMILIES["llama"].read_config(values, "config.json")
