"""`.nemo` archives: out of a run, back into a class, and as the start of another run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.errors import UserError
from tests.support.commands import QUIET, Result, cli, several
from tests.support.ranks import ROOT, clean_environment, run_ranks

STEP = "step_00000002"
SMALL = [
    "model.global_batch_size=4", "model.micro_batch_size=2", "optim.sched.warmup_steps=0",
    "data.max_length=128", "data.max_prompt_length=64", "logger.tensorboard=false",
]  # fmt: skip


def _round_trip(workdir: Path, *arguments: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank found of an archive of the model that config.yaml describes."""
    logs = [workdir.parent / f"{workdir.name}-rank{rank}.log" for rank in range(ranks)]
    files = [str(workdir / name) for name in ("config.yaml", "model.nemo", "result.json")]
    statuses = run_ranks("tests.system.nemo_roundtrip", [*files, *arguments], logs, deadline=150.0)
    assert statuses == [0] * ranks, logs[0].read_text()[-3000:]
    found: list[dict[str, Any]] = json.loads((workdir / "result.json").read_text())
    return found


def _config(workdir: Path, *overrides: str) -> None:
    done = cli("train", f"output_dir={workdir / 'run'}", *overrides, "--cfg", "job", "--resolve")
    assert done.status == 0, done.err
    (workdir / "config.yaml").write_text(done.out)


@dataclass(frozen=True)
class Runs:
    """Runs of two updates that export archives, and what was made of those."""

    root: Path
    one: dict[str, Result]
    """On one rank."""
    two: dict[str, Result]
    """On two, tensor parallel."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    given = ["objective=gdpo", f"model.restore_from_path={model}", f"data.train_path={data}",
             "optim.lr=1e-3", "trainer.max_steps=2", *SMALL, "export_nemo=true"]  # fmt: skip
    tensor_parallel = ["train", f"output_dir={root / 'two'}", *given,
                       "model.tensor_model_parallel_size=2"]  # fmt: skip
    (root / "two" / "model.nemo").mkdir(parents=True)
    two = several(
        root / "said-two",
        {
            "blocked": tensor_parallel,
            # Both ranks are told; the directory goes once.
            "cleared": ["!", "rm", "-rf", str(root / "two" / "model.nemo")],
            "again": tensor_parallel,
        },
        ranks=2,
    )
    archive, checkpoint = root / "one" / "model.nemo", root / "one" / "checkpoints" / STEP
    back = str(root / "back")
    one = several(
        root / "said-one",
        {
            "train": ["train", f"output_dir={root / 'one'}", *given],
            "to-nemo": ["convert", "megatron-to-nemo", str(checkpoint), str(root / "one.nemo")],
            "to-nemo-two": ["convert", "megatron-to-nemo",
                            str(root / "two" / "checkpoints" / STEP), str(root / "two.nemo")],
            "to-megatron": ["convert", "nemo-to-megatron", str(archive), back],
            "to-hf": ["convert", "megatron-to-hf", back, str(root / "back-hf")],
            "start": ["train", "objective=dpo", f"model.restore_from_path={archive}",
                      f"data.train_path={data}", "trainer.max_steps=1",
                      f"output_dir={root / 'start'}", *SMALL, "export_hf=false"],
        },
    )  # fmt: skip
    return Runs(root, one, two)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    """An archive of the tiny model, with the checks of the round trip beside it."""
    workdir = tmp_path_factory.mktemp("nemo")
    _config(
        workdir, "objective=gdpo", f"model.restore_from_path={model}", f"data.train_path={data}",
        "trainer.max_steps=1", *SMALL, "export_hf=false",
    )  # fmt: skip
    _round_trip(workdir, ranks=1)
    return workdir / "model.nemo"


def _found(archive: Path) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads((archive.parent / "result.json").read_text())
    assert len(found) == 1
    return found[0]


def test_restored_model_is_the_same(archive: Path) -> None:
    found = _found(archive)
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


@pytest.fixture(scope="module")
def two_ranks(
    tmp_path_factory: pytest.TempPathFactory, runs: Runs, model: Path, data: Path
) -> tuple[Path, list[dict[str, Any]]]:
    """A round trip on two tensor-parallel ranks, with the archive of one rank's run as well."""
    workdir, one = tmp_path_factory.mktemp("two-ranks"), runs.root / "one"
    _config(
        workdir, "objective=gdpo", f"model.restore_from_path={model}", f"data.train_path={data}",
        "trainer.max_steps=1", *SMALL, "model.tensor_model_parallel_size=2",
    )  # fmt: skip
    others = [str(one / "model.nemo"), str(one / "checkpoints" / STEP)]
    return workdir, _round_trip(workdir, *others, ranks=2)


@pytest.mark.nightly
def test_two_ranks_restore_what_they_saved_and_what_one_saved(
    two_ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    for found in two_ranks[1]:
        assert found["same_names"]
        assert found["equal"]
        assert found["end_token_ids"][0] == found["end_token_ids"][1]
        assert found["other_differs"]  # two updates were made
        assert found["other_equal"]


@pytest.mark.nightly
def test_failures_are_one_line_on_every_rank_and_leave_nothing(
    two_ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    workdir, (first, second) = two_ranks
    assert first["failures"] == second["failures"]
    for message, reason in zip(
        first["failures"], ("Not a directory", "it is a directory", "No space left"), strict=True
    ):
        assert "could not be written (rank 0: " in message
        assert reason in message
        assert "\n" not in message
    assert sorted(path.name for path in workdir.iterdir()) == [
        "config.yaml", "directory.nemo", "model.nemo", "result.json", "run",
    ]  # fmt: skip
    assert list((workdir / "directory.nemo").iterdir()) == []


def _opened(archive: Path, directory: Path) -> tuple[Path, DistTensorSource]:
    extract(archive, directory)
    return directory, DistTensorSource(directory / "dist")


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_verb_writes_what_the_run_writes(runs: Runs, tmp_path: Path, name: str) -> None:
    converted = runs.one["to-nemo" if name == "one" else "to-nemo-two"]
    assert converted.status == 0, converted.err
    assert "MegatronGPTGDPOModel" in converted.out
    run, its = _opened(runs.root / name / "model.nemo", tmp_path / "run")
    verb, own = _opened(runs.root / f"{name}.nemo", tmp_path / "verb")
    assert its.shapes() == own.shapes()
    assert all(torch.equal(its.tensor(tensor), own.tensor(tensor)) for tensor in its.shapes())
    first, second = (
        {path.relative_to(directory).as_posix(): path for path in directory.rglob("*.*")}
        for directory in (run, verb)
    )
    others = {path for path in first if not path.startswith("dist/")}
    assert others == {path for path in second if not path.startswith("dist/")}
    for path in others - {"model_config.yaml"}:
        assert first[path].read_bytes() == second[path].read_bytes(), path
    configs = [yaml.safe_load(x["model_config.yaml"].read_text()) for x in (first, second)]
    configs[0].pop("nemo_version")  # no NeMo wrote the second
    assert configs[0] == configs[1]
    assert configs[0]["run"]["export_nemo"] is True


def test_the_verb_leaves_the_optimizer_behind(runs: Runs) -> None:
    checkpoint = runs.root / "one" / "checkpoints" / STEP / "dist"
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert (runs.root / "one.nemo").stat().st_size < 0.6 * size
    with tarfile.open(runs.root / "one.nemo") as tar:
        member = tar.extractfile("dist/.metadata")
        assert member is not None
        assert b"optimizer" not in member.read()


def test_there_and_back_is_the_runs_export(runs: Runs) -> None:
    assert runs.one["train"].status == 0, runs.one["train"].err
    for name in ("to-megatron", "to-hf"):
        assert runs.one[name].status == 0, runs.one[name].err
    export, back = runs.root / "one" / "hf", runs.root / "back-hf"
    names = sorted(path.name for path in export.iterdir())
    assert "model.safetensors" in names
    assert names == sorted(path.name for path in back.iterdir())
    for name in names:
        assert (export / name).read_bytes() == (back / name).read_bytes(), name


def test_a_run_starts_from_a_runs_archive(runs: Runs) -> None:
    """Policy and reference are the trained weights: the first loss is log 2."""
    assert runs.one["start"].status == 0, runs.one["start"].err
    line = json.loads((runs.root / "start" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_blocked_archive_ends_the_run_and_the_next_start_writes_it(runs: Runs) -> None:
    blocked, again = runs.two["blocked"], runs.two["again"]
    assert blocked.status == 1
    assert len(blocked.complaints) == 1
    assert "model.nemo could not be written (rank 0: [Errno 21] it is" in blocked.complaints[0]
    assert again.status == 0, again.err
    assert f"resumed {STEP}: 2 of 2 steps" in again.out
    assert "exported" in again.out
    assert [path.name for path in (runs.root / "two").glob(".*")] == [".lock"]


NO_NEMO = """
import sys
from pathlib import Path
from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.verbs.convert import run
checkpoint, folder = sys.argv[1:]
archive = folder + "/m.nemo"
assert run(["megatron-to-nemo", checkpoint, archive]) == 0
assert run(["nemo-to-megatron", archive, folder + "/m"]) == 0
assert run(["megatron-to-hf", folder + "/m", folder + "/hf"]) == 0
assert not {"megatron", "nemo", "lightning"} & set(sys.modules), "convert"
from nemo_gdpo.verbs.rank import run_task
config = read_config(Path(checkpoint).parents[1] / "config.yaml", TRAIN)
assert config.export_nemo
status = run_task("reference", config.model_copy(update={"output_dir": folder + "/run"}))
assert status == 0
import tests.parallel.rank_main
assert "megatron" in sys.modules
assert not {"nemo", "lightning"} & set(sys.modules), "reference"
"""


def test_only_training_imports_nemo(runs: Runs, tmp_path: Path) -> None:
    """Conversions import neither nemo nor megatron; a rank of `reference` no nemo."""
    done = subprocess.run(
        [sys.executable, "-c", NO_NEMO, str(runs.root / "one" / "checkpoints" / STEP),
         str(tmp_path)],
        env=clean_environment(), cwd=ROOT, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "reference" / "train").is_dir()
    assert not (tmp_path / "run" / "model.nemo").exists()


def _tar(path: Path, member: tarfile.TarInfo, content: bytes = b"x") -> Path:
    member.size = len(content) if member.isfile() else 0
    with tarfile.open(path, "w") as tar:
        tar.addfile(member, io.BytesIO(content))
    return path


def test_members_cannot_escape(tmp_path: Path) -> None:
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
    path = tmp_path / "torn.nemo"
    path.write_bytes(b"not a tar")
    with pytest.raises(UserError, match=r"torn\.nemo"):
        extract(path, tmp_path / "out")
