"""`.nemo` archives: out of a run, back into a class, and as the start of another run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from nemo_gdpo.errors import UserError
from tests.support.commands import QUIET, cli
from tests.support.ranks import ROOT, clean_environment


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    """An archive of the tiny model, with the checks of the round trip beside it."""
    workdir = tmp_path_factory.mktemp("nemo")
    composed = cli(
        "train", "objective=gdpo", f"model.restore_from_path={model}", f"data.train_path={data}",
        "trainer.max_steps=1", f"output_dir={workdir / 'run'}", "model.global_batch_size=4",
        "model.micro_batch_size=2", "optim.sched.warmup_steps=0", "data.max_length=128",
        "data.max_prompt_length=64", *QUIET, "--cfg", "job", "--resolve",
    )  # fmt: skip
    assert composed.status == 0, composed.err
    (workdir / "config.yaml").write_text(composed.out)
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.nemo_roundtrip", str(workdir / "config.yaml"),
         str(workdir / "model.nemo"), str(workdir / "result.json")],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True,
        text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir / "model.nemo"


def test_restored_model_is_the_same(archive: Path) -> None:
    found = json.loads((archive.parent / "result.json").read_text())
    assert found["same_names"]
    assert found["equal"]
    assert found["parameters"] > 10
    assert found["objective"].startswith("GDPO(")
    assert found["config"]["name"] == "gdpo"
    # Another class would train another objective under the archive's name.
    assert "does not train objective gdpo" in found["refusal"]


def test_archive_holds_what_an_export_needs(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    assert {"model_config.yaml", "model_config.json", "hf_assets/tokenizer.json"} <= names
    assert any(name.startswith("dist/") and name.endswith(".distcp") for name in names)


def test_training_starts_from_an_archive(archive: Path, data: Path, tmp_path: Path) -> None:
    """The gate at step 0 passes, and one update is made."""
    done = cli(
        "train", "objective=dpo", f"model.restore_from_path={archive}", f"data.train_path={data}",
        "trainer.max_steps=1", f"output_dir={tmp_path}", "model.global_batch_size=4",
        "model.micro_batch_size=2", "optim.sched.warmup_steps=0", "data.max_length=128",
        "data.max_prompt_length=64", *QUIET,
    )  # fmt: skip
    assert done.status == 0, done.err
    entry = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert entry["loss"] == pytest.approx(0.693147, abs=1e-4)


def _tar(path: Path, member: tarfile.TarInfo, content: bytes = b"x") -> Path:
    member.size = len(content) if member.isfile() else 0
    with tarfile.open(path, "w") as tar:
        tar.addfile(member, io.BytesIO(content))
    return path


def test_members_cannot_escape(tmp_path: Path) -> None:
    from nemo_gdpo.conversion.nemo1.archive import extract

    target = tmp_path / "inside"
    target.mkdir()
    with pytest.raises(UserError, match="refused"):
        extract(_tar(tmp_path / "a.nemo", tarfile.TarInfo("../outside")), target)
    link = tarfile.TarInfo("dist")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with pytest.raises(UserError, match="not a plain file"):
        extract(_tar(tmp_path / "b.nemo", link), target)
    assert not (tmp_path / "outside").exists()
    assert list(target.iterdir()) == []


def test_a_torn_archive_is_named(tmp_path: Path) -> None:
    from nemo_gdpo.conversion.nemo1.archive import extract

    path = tmp_path / "torn.nemo"
    path.write_bytes(b"not a tar")
    with pytest.raises(UserError, match=r"torn\.nemo"):
        extract(path, tmp_path / "out")
