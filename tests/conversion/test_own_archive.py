"""This project's `.nemo` archives without a model: from a checkpoint, and back."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from nemo_gdpo.config.composition import config_yaml
from nemo_gdpo.config.objective import DPOSettings, IPOSettings
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.conversion import own_archive
from nemo_gdpo.conversion.cli import main
from nemo_gdpo.conversion.convert import convert_hf_to_megatron
from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource
from nemo_gdpo.conversion.formats.megatron_io import read_checkpoint_model
from nemo_gdpo.conversion.resolve import fingerprint_of, resolve_checkpoint
from tests.conversion.conftest import ModelMaker

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def converted(make_model: ModelMaker, tmp_path: Path) -> Path:
    """A converted model; its generation config names the stop token 2."""
    convert_hf_to_megatron(make_model(), tmp_path / "megatron")
    return tmp_path / "megatron"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "m.nemo"


def as_run(checkpoint: Path, output: Path, **identity: object) -> Path:
    """The checkpoint as a run with the objective dpo would have left it."""
    config = RunConfig(objective=DPOSettings(beta=0.3), output_dir=str(output), seed=7)
    place = output / "checkpoints" / "step_00000003"
    place.parent.mkdir(parents=True)
    shutil.copytree(checkpoint, place)
    objective = {"name": "dpo", "beta": 0.3}  # as before there was label_smoothing
    state = {"identity": {"objective": objective, "end_token_id": 5} | identity}
    (place / "trainer_state.json").write_text(json.dumps(state))
    (output / "config.yaml").write_text(config_yaml(config))
    return place


def opened(archive: Path) -> Path:
    directory = archive.parent / f"{archive.stem}-opened"
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return directory


def refused(capsys: Capture, reason: str, *arguments: object, status: int = 2) -> None:
    """One line, and the status."""
    capsys.readouterr()
    assert main(["megatron-to-nemo", *map(str, arguments)]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert reason in lines[0]


def same_tensors(first: Path, second: Path) -> bool:
    one, two = DistTensorSource(first / "dist"), DistTensorSource(second / "dist")
    return one.shapes() == two.shapes() and all(
        one.dtype(name) == two.dtype(name) and torch.equal(one.tensor(name), two.tensor(name))
        for name in one.shapes()
    )


def test_a_converted_model(converted: Path, out: Path, capsys: Capture) -> None:
    assert main(["megatron-to-nemo", str(converted), str(out), "--objective", "ipo"]) == 0
    said = capsys.readouterr().out
    assert "its run's config.yaml is not known; the archive says objective ipo, end tok" in said
    assert f"wrote {out}: MegatronGPTDPOModel, end token 2" in said
    inside = opened(out)
    assert same_tensors(inside, converted)
    for name in ("model_config.json", "model_card.json", "hf_assets/tokenizer.json"):
        assert (inside / name).read_bytes() == (converted / name).read_bytes()
    found = yaml.safe_load((inside / "model_config.yaml").read_text())
    assert found["target"] == "nemo_gdpo.nemo.classes.MegatronGPTDPOModel"
    assert found["run"].pop("end_token_id") == 2
    assert found["run"] == yaml.safe_load(config_yaml(RunConfig(objective=IPOSettings())))
    # The weights are those of the base model: its reference caches may be used.
    assert fingerprint_of(inside) == fingerprint_of(converted)
    assert [path.name for path in out.parent.iterdir() if path.is_file()] == ["m.nemo"]


def test_a_run_is_known(converted: Path, tmp_path: Path, out: Path, capsys: Capture) -> None:
    place = as_run(converted, tmp_path / "run")
    for given in (place, place / "dist"):
        assert main(["megatron-to-nemo", str(given), str(out), "--force"]) == 0
    assert "not known" not in capsys.readouterr().out
    inside = opened(out)
    run = yaml.safe_load((inside / "model_config.yaml").read_text())["run"]
    assert run.pop("end_token_id") == 5
    assert run == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    # Trained weights must not pass for those that training started from.
    assert read_checkpoint_model(place).source_sha256 is not None
    assert read_checkpoint_model(inside).source_sha256 is None
    refused(capsys, "was trained with dpo", place, out, "--force", "--objective", "gdpo")
    refused(capsys, "end in token 5", place, out, "--force", "--end-token-id", 4)


def test_a_moved_training_checkpoint_keeps_its_objective(
    converted: Path, tmp_path: Path, out: Path, capsys: Capture
) -> None:
    place = as_run(converted, tmp_path / "run").rename(tmp_path / "moved")
    assert main(["megatron-to-nemo", str(place), str(out)]) == 0
    assert "says objective dpo, end token 5, and the defaults" in capsys.readouterr().out
    run = yaml.safe_load((opened(out) / "model_config.yaml").read_text())["run"]
    assert run["objective"]["beta"] == 0.3
    assert run["seed"] == RunConfig().seed


def test_another_runs_configuration_is_refused(
    converted: Path, tmp_path: Path, out: Path, capsys: Capture
) -> None:
    place = as_run(converted, tmp_path / "run", objective={"name": "gdpo"})
    refused(capsys, "config.yaml: its objective is not that of", place, out)
    (tmp_path / "run" / "config.yaml").write_text("seed: [")
    refused(capsys, f"error: {tmp_path}/run/config.yaml: cannot be read", place, out)


def test_the_end_token_must_be_told_where_there_are_several(
    converted: Path, out: Path, capsys: Capture
) -> None:
    config = converted / "hf_assets" / "generation_config.json"
    config.write_text('{"eos_token_id": [2, 3]}')
    refused(capsys, "name several (2, 3); say which one with --end-token-id", converted, out)
    refused(capsys, "101 is not one of the model's 101 tokens", converted, out,
            "--end-token-id", 101)  # fmt: skip
    assert main(["megatron-to-nemo", str(converted), str(out), "--end-token-id", "3"]) == 0
    config.write_text("{")
    refused(capsys, "cannot be read as JSON", converted, out, "--force")
    config.unlink()  # config.json says 2
    assert main(["megatron-to-nemo", str(converted), str(out), "--force"]) == 0
    assert "end token 2" in capsys.readouterr().out


def test_places_that_are_refused(
    converted: Path, out: Path, tmp_path: Path, capsys: Capture
) -> None:
    refused(capsys, "does not end in .nemo", converted, tmp_path / "archive.tar")
    out.mkdir(parents=True)
    refused(capsys, "is a directory", converted, out, "--force")
    out.rmdir()
    out.write_text("mine")
    refused(capsys, "replace it with --force", converted, out)
    assert out.read_text() == "mine"
    refused(capsys, "could not be written", converted, out / "below.nemo")
    assert [path.name for path in out.parent.iterdir()] == ["m.nemo"]


def test_sources_that_are_refused(
    converted: Path, out: Path, tmp_path: Path, capsys: Capture
) -> None:
    refused(capsys, "is not a Megatron checkpoint", tmp_path / "absent", out)
    refused(capsys, "is not a Megatron checkpoint", tmp_path / "hf", out)
    tokenizer = converted / "hf_assets" / "tokenizer.json"
    tokenizer.unlink()
    refused(capsys, "hf_assets: has no tokenizer", converted, out)
    shutil.rmtree(converted / "hf_assets")
    refused(capsys, "hf_assets: has no tokenizer", converted, out)


def test_damaged_weights_leave_nothing(converted: Path, out: Path, capsys: Capture) -> None:
    shard = max((converted / "dist").glob("*.distcp"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-20_000])
    out.parent.mkdir()
    out.write_text("before")
    refused(capsys, "is damaged", converted, out, "--force")
    assert out.read_text() == "before"
    assert [path.name for path in out.parent.iterdir()] == ["m.nemo"]


def test_a_full_disk_leaves_nothing(
    converted: Path, out: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path, archive: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out.parent.mkdir()
    out.write_text("before")
    monkeypatch.setattr(own_archive, "pack", full)
    full_disk = "could not be written (No space left on device)"
    refused(capsys, full_disk, converted, out, "--force", status=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    refused(capsys, "0.00 GiB are free", converted, out, "--force")
    assert out.read_text() == "before"
    assert [path.name for path in out.parent.iterdir()] == ["m.nemo"]


def test_the_same_weights_give_the_same_bytes(converted: Path, tmp_path: Path) -> None:
    for name in ("a.nemo", "b.nemo"):
        assert main(["megatron-to-nemo", str(converted), str(tmp_path / name)]) == 0
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()


def test_back_to_megatron(converted: Path, out: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["megatron-to-nemo", str(converted), str(out)]) == 0
    assert main(["nemo-to-megatron", str(out), str(tmp_path / "back")]) == 0
    assert same_tensors(tmp_path / "back", converted)
    assert read_checkpoint_model(tmp_path / "back") == read_checkpoint_model(converted)
    assert main(["verify", str(out), str(tmp_path / "back"), "--tensors-only"]) == 0
    options = ["--dtype", "bf16", "--make-vocab-size-divisible-by", "101"]
    assert main(["nemo-to-megatron", str(out), str(tmp_path / "other"), *options]) == 0
    other = DistTensorSource(tmp_path / "other" / "dist")
    whole = DistTensorSource(converted / "dist").tensor("embedding.word_embeddings.weight")
    assert whole.shape == (128, 32)
    found = other.tensor("embedding.word_embeddings.weight")
    assert torch.equal(found, whole[:101].to(torch.bfloat16))
    capsys.readouterr()
    arguments = [str(out), str(tmp_path / "x"), "--vocab-size", "101"]
    assert main(["nemo-to-megatron", *arguments]) == 2
    assert "says all of it itself" in capsys.readouterr().err


def test_trained_weights_have_a_fingerprint_of_their_own(
    converted: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same one whether a run starts from the archive or from its conversion."""
    monkeypatch.setenv("NEMO_GDPO_CACHE", str(tmp_path / "cache"))
    place = as_run(converted, tmp_path / "run")
    assert main(["megatron-to-nemo", str(place), str(out)]) == 0
    assert main(["nemo-to-megatron", str(out), str(tmp_path / "back")]) == 0
    assert fingerprint_of(tmp_path / "back") == fingerprint_of(resolve_checkpoint(out))
    assert fingerprint_of(tmp_path / "back") != fingerprint_of(converted)
