"""The store: torn lines, what is done, what is refused, one writer, full disks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.manifest import read_manifest
from nemo_gdpo.generation.store import Store, read_generations, shards
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.io.rows import repair

from .fakes import manifest, row


def _open(directory: Path, rows_per_shard: int = 100, **settings: Any) -> Store:
    return Store(directory, manifest(**settings), rows_per_shard)


def _fill(directory: Path, *ids: str) -> None:
    with _open(directory) as store:
        for name in ids:
            store.append(row(name))


def _ids(directory: Path) -> list[str]:
    return [found["id"] for _, found in read_generations(directory)]


def test_rows_come_back_and_are_known_to_be_done(tmp_path: Path) -> None:
    with _open(tmp_path / "new" / "out") as store:
        store.append(row("a", prompt="Grüße\n\u2028"))
        store.append(row("a", 0.7))
    with _open(tmp_path / "new" / "out") as store:
        assert store.done == {("a", SamplingPoint()), ("a", SamplingPoint(0.7))}
        store.append(row("b"))
    rows = [found for _, found in read_generations(tmp_path / "new" / "out")]
    assert [found["id"] for found in rows] == ["a", "a", "b"]
    assert rows[0]["prompt"] == "Grüße\n\u2028"


def test_a_row_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    store = _open(tmp_path)
    store.append(row("a"))
    assert _ids(tmp_path) == ["a"]
    store.close()


def test_shards_have_so_many_rows_also_over_several_runs(tmp_path: Path) -> None:
    for names in ("ab", "c", "defg"):
        with _open(tmp_path, rows_per_shard=3) as store:
            for name in names:
                store.append(row(name))
    assert [path.name for path in shards(tmp_path)] == [
        f"generations-0000{n}.jsonl" for n in range(3)
    ]
    assert [len(path.read_text().splitlines()) for path in shards(tmp_path)] == [3, 3, 1]
    assert _ids(tmp_path) == list("abcdefg")


def test_a_torn_line_is_cut_away_and_sampled_again(tmp_path: Path) -> None:
    _fill(tmp_path, "a", "b", "c")
    shard = tmp_path / "generations-00000.jsonl"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    assert _ids(tmp_path) == ["a", "b"]  # a reader leaves it out
    with _open(tmp_path) as store:
        assert store.repaired == len(whole.splitlines()[-1]) - 6
        assert {key for key, _ in store.done} == {"a", "b"}
        store.append(row("c"))
    assert shard.read_bytes() == whole


def test_a_shard_of_one_torn_line(tmp_path: Path) -> None:
    shard = tmp_path / "generations-00000.jsonl"
    shard.write_bytes(b"x" * 200_000)
    assert repair(shard) == 200_000
    assert shard.read_bytes() == b""
    shard.write_bytes(b'{"a": 1}\n' + b"y" * 200_000)
    assert repair(shard) == 200_000
    assert shard.read_bytes() == b'{"a": 1}\n'
    assert repair(shard) == 0


def test_only_a_line_that_was_finished_can_be_damaged(tmp_path: Path) -> None:
    _fill(tmp_path, "a", "b")
    shard = tmp_path / "generations-00000.jsonl"
    lines = shard.read_text().splitlines()
    shard.write_text(f"{lines[0][:-3]}\n{lines[1]}\n")
    with pytest.raises(UserError, match=r"generations-00000\.jsonl, line 1: damaged"):
        _open(tmp_path)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"temperature": "1"}, None, {"top_p": 1.0, "beams": 4}]
)
def test_a_row_without_its_sampling_is_refused(tmp_path: Path, sampling: Any) -> None:
    """A missing number is not taken for the one that changes nothing."""
    _fill(tmp_path, "a")
    shard = tmp_path / "generations-00000.jsonl"
    shard.write_text(json.dumps(json.loads(shard.read_text()) | {"sampling": sampling}) + "\n")
    with pytest.raises(UserError, match=r"line 1: no row of samples .*; remove the line"):
        _open(tmp_path)


def test_rows_twice_are_refused(tmp_path: Path) -> None:
    _fill(tmp_path, "a")
    shard = tmp_path / "generations-00000.jsonl"
    shard.write_text(shard.read_text() * 2)
    with pytest.raises(UserError, match=r"line 2: the same row as .*line 1"):
        _open(tmp_path)
    other = tmp_path / "other"
    with _open(other) as store:
        store.append(row("a"))
        with pytest.raises(GenerationError, match="the row of prompt 'a' twice"):
            store.append(row("a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"seed": 2}}, "settings.seed is 1 there and 2 here"),
        ({"settings": {"max_tokens": 5}}, "settings.max_tokens is 4 there and 5 here"),
        ({"settings": {"num_samples": 3}}, "settings.num_samples is 2 there and 3 here"),
        ({"model": {"hash": "i"}}, 'model.hash is "h" there and "i" here'),
        ({"engine": {"engine_version": "1"}}, 'engine.engine_version is "0" there and "1" here'),
        ({"settings": {"new": 1}}, "settings.new is null there and 1 here"),
    ],
)
def test_samples_of_another_kind_are_refused(
    tmp_path: Path, change: dict[str, dict[str, Any]], message: str
) -> None:
    _fill(tmp_path, "a")
    before = (tmp_path / "manifest.json").read_bytes()
    wanted = manifest()
    for section, values in change.items():
        wanted[section] |= values
    with pytest.raises(UserError, match=message) as caught:
        Store(tmp_path, wanted, 100)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_model_path_may_change_and_sweep_may_grow(tmp_path: Path) -> None:
    _fill(tmp_path, "a")
    wanted = manifest()
    wanted["model"]["path"] = "/elsewhere"
    wanted["points"] = [SamplingPoint(0.7).to_dict()]
    Store(tmp_path, wanted, 100).close()
    found = read_manifest(tmp_path)
    assert found is not None
    assert found["points"] == [SamplingPoint().to_dict(), SamplingPoint(0.7).to_dict()]
    assert found["prompt_files"] == manifest()["prompt_files"]


def test_samples_without_a_manifest_are_refused(tmp_path: Path) -> None:
    _fill(tmp_path, "a")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"holds samples and no manifest\.json"):
        _open(tmp_path)


def test_another_prompt_under_a_known_id_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path, "a")
    with _open(tmp_path) as store:
        store.check_prompts({"a": "text of a", "b": "new"}, {})
        with pytest.raises(UserError, match=r"p\.jsonl, line 3: id 'a' has another prompt than in"):
            store.check_prompts({"a": "other"}, {"a": "p.jsonl, line 3"})
        with pytest.raises(UserError, match="has another prompt"):
            store.check_prompts({"a": [{"role": "user", "content": "text of a"}]}, {"a": "x"})


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    _fill(tmp_path, "a")
    code = (
        "import sys; from pathlib import Path; from tests.generation.test_store import _open\n"
        "from nemo_gdpo.errors import UserError\n"
        f"try: _open(Path({str(tmp_path)!r}))\n"
        "except UserError as error: print(error); sys.exit(2)"
    )
    with _open(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2, done.stderr
    assert "another run is writing into" in done.stdout
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_full_disk_leaves_complete_rows(tmp_path: Path) -> None:
    """Under a real limit the kernel writes what fits, then refuses."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from nemo_gdpo.generation.errors import GenerationError
from tests.generation.test_store import _open, row
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with _open(Path({str(tmp_path)!r})) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    try:
        for number in range(100):
            store.append(row(str(number), outputs=["y" * 500]))
    except GenerationError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be written (File too large); the 4 rows there are intact" in done.stdout
    assert done.stdout.count("\n") == 1
    assert _ids(tmp_path) == ["0", "1", "2", "3"]
    assert (tmp_path / "generations-00000.jsonl").read_bytes().endswith(b"\n")
    with _open(tmp_path) as store:
        assert store.repaired == 0
        store.append(row("4"))
    assert _ids(tmp_path) == ["0", "1", "2", "3", "4"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir: .*cannot be written"):
        _open(tmp_path / "file" / "out")


def test_numbers_that_json_does_not_have_are_not_written(tmp_path: Path) -> None:
    with _open(tmp_path) as store, pytest.raises(ValueError, match="JSON"):
        store.append(row("a", cumulative_logprobs=[float("nan")]))
    assert _ids(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "manifest.json"}
