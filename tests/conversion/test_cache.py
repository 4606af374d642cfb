"""The cache of converted models: its key, its check, its lock, and several processes at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_gdpo.conversion import cache
from nemo_gdpo.conversion.atomic import MARKER
from nemo_gdpo.conversion.cli import main
from nemo_gdpo.conversion.compare.verify import verify
from nemo_gdpo.conversion.resolve import fingerprint_of, resolve_checkpoint
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import digest_of
from nemo_gdpo.io.manifest import why_damaged
from tests.conversion.conftest import ModelMaker

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache"


def settled(source: Path) -> Path:
    """Give the files an age at which their hash is remembered."""
    for path in source.iterdir():
        os.utime(path, ns=(0, time.time_ns() - 10 * 10**9))
    return source


def written(directory: Path) -> int:
    return (directory / "model_config.json").stat().st_mtime_ns


def test_the_second_time_nothing_is_converted_nor_hashed(
    make_model: ModelMaker, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = settled(make_model())
    first = resolve_checkpoint(source)
    assert first.parent == empty_cache / "models"
    assert first.name.startswith("hf-")
    assert verify(source, first).same
    before = written(first)
    monkeypatch.setattr(cache, "hash_files", lambda *a, **k: pytest.fail("hashed again"))
    assert resolve_checkpoint(source) == first
    assert written(first) == before
    assert (
        fingerprint_of(first)
        == json.loads(next((empty_cache / "fingerprints").iterdir()).read_text())["sha256"]
    )


def test_a_file_that_was_written_just_now_is_hashed_again(
    make_model: ModelMaker, empty_cache: Path
) -> None:
    """It could change again without its time of change showing it."""
    resolve_checkpoint(make_model())
    assert not (empty_cache / "fingerprints").exists()


@pytest.mark.parametrize("what", ["weights", "tokenizer", "config"])
def test_another_source_has_another_entry(make_model: ModelMaker, what: str) -> None:
    source = settled(make_model())
    first = resolve_checkpoint(source)
    if what == "weights":
        tensors = load_file(source / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    elif what == "tokenizer":
        (source / "tokenizer.json").write_text('{"version": "2.0"}')
    else:
        values = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 1e-4}))
    second = resolve_checkpoint(settled(source))
    assert second != first
    assert verify(source, second).same


def test_same_bytes_elsewhere_are_the_same_entry(make_model: ModelMaker, tmp_path: Path) -> None:
    first = resolve_checkpoint(make_model())
    other = tmp_path / "copy" / "hf"
    other.parent.mkdir()
    (tmp_path / "hf").rename(other)
    assert resolve_checkpoint(other) == first


@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_a_damaged_entry_is_converted_again(
    make_model: ModelMaker, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model()
    file = resolve_checkpoint(source) / "dist" / "__0_0.distcp"
    if damage == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    found = resolve_checkpoint(source)
    assert "converting again, dist/__0_0.distcp has" in capsys.readouterr().out
    assert verify(source, found).same


@pytest.mark.parametrize("what", ["a byte", "the list", "a file too many", "the list's hash"])
def test_an_entry_of_the_right_sizes_that_is_not_what_was_written(
    make_model: ModelMaker, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the right sizes, whatever lay there was trained from."""
    source = make_model()
    found = resolve_checkpoint(source)
    file, marker = found / "dist" / "__0_0.distcp", found / MARKER
    if what == "a byte":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        said = "dist/__0_0.distcp is damaged (its SHA-256 differs)"
    elif what == "a file too many":
        (found / "dist" / "__9_0.distcp").write_bytes(b"")
        said = f"its {MARKER} does not list dist/__9_0.distcp"
    else:
        content = json.loads(marker.read_text())
        del content["files"]["dist/__0_0.distcp"]
        if what == "the list":  # as it would be written without the file
            content["sha256"] = digest_of(content["files"])
        marker.write_text(json.dumps(content))
        said = f"its {MARKER} " + (
            "does not list dist/__0_0.distcp" if what == "the list" else "is damaged"
        )
    found = resolve_checkpoint(source)
    assert f"{found}: converting again, {said}" in capsys.readouterr().out
    assert verify(source, found).same


def test_an_entry_of_an_earlier_version_has_no_hashes(
    make_model: ModelMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model()
    marker = resolve_checkpoint(source) / MARKER
    content = json.loads(marker.read_text())
    sizes = {name: entry["bytes"] for name, entry in content["files"].items()}
    marker.write_text(json.dumps({"kind": content["kind"], "files": sizes}))
    resolve_checkpoint(source)
    assert "converting again, its nemo_gdpo_conversion.json has no" in capsys.readouterr().out


def test_an_entry_is_read_once(
    make_model: ModelMaker, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model()
    found = resolve_checkpoint(source)
    reads: list[Path] = []

    def read(directory: Path, files: Any) -> str | None:
        reads.append(directory)
        return why_damaged(directory, files)

    monkeypatch.setattr(cache, "why_damaged", read)
    resolve_checkpoint(source)
    assert len(reads) == 1 and not (empty_cache / "verified").exists()  # too young to be noted
    for path in found.rglob("*"):
        os.utime(path, ns=(0, time.time_ns() - 10 * 10**9))
    for _ in range(3):
        assert resolve_checkpoint(source) == found
    assert len(reads) == 2
    times = (found / "dist" / "__0_0.distcp").stat()
    (found / "dist" / "__0_0.distcp").chmod(0o640)  # any change; its other times are set back
    os.utime(found / "dist" / "__0_0.distcp", ns=(times.st_atime_ns, times.st_mtime_ns))
    resolve_checkpoint(source)
    assert len(reads) == 3
    resolve_checkpoint(source)
    assert len(reads) == 3
    (note,) = (empty_cache / "verified").iterdir()
    note.chmod(0o660)  # others could have written it
    resolve_checkpoint(source)
    assert len(reads) == 4
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # what others have read is their own matter
    resolve_checkpoint(source)
    assert len(reads) == 5


def test_a_shared_cache_is_its_groups(
    make_model: ModelMaker, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a umask of 077 everything in it was its maker's alone."""
    empty_cache.mkdir()
    empty_cache.chmod(0o2770)
    source = settled(make_model())
    before = os.umask(0o077)
    try:
        found = resolve_checkpoint(source)
        made = [path for path in empty_cache.rglob("*") if path.parent.name != "fingerprints"]
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert any(path.suffix == ".lock" for path in made) and found / MARKER in made
    for path in made:
        wanted = 0o2770 if path.is_dir() else 0o660
        assert path.stat().st_mode & 0o7777 == wanted, path


def test_a_cache_that_may_only_be_read(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = settled(make_model())
    found = resolve_checkpoint(source)

    @contextlib.contextmanager
    def refused(*_: Any, **__: Any) -> Iterator[None]:
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr(cache, "held", refused)
    assert resolve_checkpoint(source) == found
    (found / "dist" / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match="the cache of converted models cannot be used"):
        resolve_checkpoint(source)


@pytest.mark.slow
def test_several_processes_convert_once(make_model: ModelMaker) -> None:
    source = make_model()
    code = (
        "import sys; from pathlib import Path\n"
        "from nemo_gdpo.conversion.resolve import resolve_checkpoint\n"
        "resolve_checkpoint(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(source)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("made" in text for text in printed) == 1
    assert sum("reused" in text for text in printed) == 2


def test_what_a_run_may_start_from(make_model: ModelMaker, tmp_path: Path) -> None:
    megatron = resolve_checkpoint(make_model())
    assert resolve_checkpoint(megatron) == megatron
    assert resolve_checkpoint(megatron / "dist") == megatron
    bare = tmp_path / "bare"
    shutil.copytree(megatron / "dist", bare / "dist")
    with pytest.raises(UserError, match=r"without its model_config\.json; convert the model again"):
        resolve_checkpoint(bare)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="neither a Hugging Face directory"):
        resolve_checkpoint(tmp_path / "nothing")


def test_a_cache_that_cannot_be_written_names_the_variable(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"set {cache.ENVIRONMENT} to a directory"):
        resolve_checkpoint(make_model())


def test_a_directory_and_its_conversion_have_one_fingerprint(make_model: ModelMaker) -> None:
    """What a run is known by does not depend on the way its weights are loaded."""
    source = make_model(max_shard_size="20KB")
    assert fingerprint_of(source) == fingerprint_of(resolve_checkpoint(source))


def test_a_hash_that_cannot_be_kept_names_the_variable(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = settled(make_model())
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"set {cache.ENVIRONMENT} to a directory that can be"):
        fingerprint_of(source)


def test_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.ENVIRONMENT, "~/x")
    assert cache.cache_root() == Path.home() / "x"
    monkeypatch.delenv(cache.ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache.cache_root() == Path("/var/cache/nemo_gdpo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "nemo_gdpo"


def test_listing_and_emptying(
    make_model: ModelMaker, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    first, second = (
        resolve_checkpoint(make_model("a")),
        resolve_checkpoint(make_model("b", rms_norm_eps=1e-3)),
    )
    capsys.readouterr()
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [second.name, first.name, str(empty_cache)]
    assert main(["cache", "--remove", "absent"]) == 2
    assert main(["cache", "--remove", first.name]) == 0
    assert not first.exists() and second.exists()
    assert main(["cache", "--remove", "all"]) == 0
    assert list((empty_cache / "models").iterdir()) == []
