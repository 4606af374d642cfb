"""A reference cache that is shared, killed, damaged, or of another model: right, or refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.training.resume import IDENTITY
from tests.support.commands import (
    DEADLINE,
    common,
    finish,
    metrics,
    several,
    started,
    steps,
    without_timing,
)
from tests.support.data import pairs, write_jsonl
from tests.support.ranks import ROOT, clean_environment

GDPO = ["objective=gdpo", "objective.balance=db"]
SCORED = "models.preference_model:PreferenceModel.get_reference_logprobs"
KILLED = """
import sys
from nemo_gdpo.cli import main
from nemo_gdpo.training import reference
from tests.support.signals_at import signal_at
reference.FLUSH_SECONDS = 0.0
with signal_at("SIGKILL", "models.preference_model:PreferenceModel.get_reference_logprobs", 3):
    sys.exit(main(sys.argv[1:]))
"""


def rows(directory: Path) -> dict[int, Any]:
    """Row -> values of a cache, however it is cut into shards."""
    from safetensors.torch import load_file

    assert (directory / "manifest.json").is_file(), directory
    found: dict[int, Any] = {}
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        values = tensors["values"].split(tensors["lengths"].tolist())
        for row, value in zip(tensors["rows"].tolist(), values, strict=True):
            assert row not in found
            found[row] = value.tolist()
    return found


def temperature_of(directory: Path) -> float:
    manifest = json.loads((directory / "manifest.json").read_text())
    return float(manifest["key"]["eos_temperature"])


def test_runs_that_start_together_share_or_keep_apart(tmp_path: Path, model: Path) -> None:
    """Two of one key and one of another: each gets its own numbers, and the two share theirs."""
    many = write_jsonl(tmp_path / "many.jsonl", pairs(400))

    def command(name: str, temperature: float, cache: Path) -> list[str]:
        given = common(model, many, tmp_path / name, *GDPO, f"reference_cache_dir={cache}")
        return [*given, f"objective.eos_temperature={temperature}"]

    shared = tmp_path / "shared"
    temperatures = {"a": 0.1, "b": 0.5, "c": 0.1}
    with (
        started("reference", *command("a", 0.1, shared)) as one,
        started("reference", *command("b", 0.5, shared)) as two,
        started("reference", *command("c", 0.1, shared)) as three,
    ):
        done = dict(zip("abc", map(finish, (one, two, three)), strict=True))
    for name, result in done.items():
        assert result.status == 0, f"{name}: {result.err}"
    computed = [name for name in "ac" if "reference train: computed" in done[name].out]
    assert len(computed) == 1
    found = {temperature_of(path): rows(path) for path in shared.iterdir()}
    assert sorted(found) == [0.1, 0.5]
    alone = several(
        tmp_path / "logs",
        {name: ["reference", *command(f"{name} alone", t, tmp_path / f"own {t}")]
         for name, t in temperatures.items() if name != "c"},
    )  # fmt: skip
    assert [result.status for result in alone.values()] == [0, 0]
    for t in (0.1, 0.5):
        (own,) = (tmp_path / f"own {t}").iterdir()
        assert rows(own) == found[t]
        assert {len(value[0]) for value in found[t].values()} == {2}  # label and tempered EOS
    assert found[0.1] != found[0.5]


@pytest.mark.nightly
def test_killed_it_loses_what_was_not_written(tmp_path: Path, model: Path, data: Path) -> None:
    """And a byte that the disk has lost costs the batch that it was of."""
    output = tmp_path / "killed"
    arguments = common(model, data, output, *GDPO)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "reference", *arguments],
        env=clean_environment(), cwd=ROOT, capture_output=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    partial = output / "reference" / ".train.partial"
    shards = sorted(partial.glob("shard-*"))
    # Of four batches two are written, and the third is being computed.
    assert [path.name[:23] for path in shards] == [
        "shard-00000000-00000000", "shard-00000001-00000001",
    ]  # fmt: skip
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    (partial / ".shard-half.host-1-00000000.tmp").write_bytes(b"half")
    shutil.copytree(output, tmp_path / "other")
    shutil.copytree(output, tmp_path / "unknown")
    (tmp_path / "unknown" / IDENTITY).unlink()
    done = several(
        tmp_path / "logs",
        {
            "again": ["reference", *arguments],
            "whole": ["reference", *common(model, data, tmp_path / "whole", *GDPO)],
            **{
                name: [
                    "reference",
                    *common(model, data, tmp_path / name, *GDPO),
                    "objective.eos_temperature=0.5",
                ]
                for name in ("other", "unknown")
            },
        },
    )
    assert [result.status for result in done.values()] == [0, 0, 2, 0], done
    assert "reference train: continuing, 4 of 16 pairs" in done["again"].out
    assert rows(output / "reference" / "train") == rows(tmp_path / "whole" / "reference" / "train")
    assert [path.name for path in (output / "reference").iterdir()] == ["train"]
    # Other settings are another run; where nothing says so, the key does.
    assert "was made with another objective (objective.eos_temp" in done["other"].complaints[0]
    assert "differs in columns, eos_temperature is dropped" in done["unknown"].out
    assert "continuing" not in done["unknown"].out


@pytest.mark.nightly
def test_another_rope_base_is_another_model(tmp_path: Path, model: Path, data: Path) -> None:
    """With the same weights: no resume, and no reference, of the one is the other's."""
    changed = shutil.copytree(model, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    parameters = config.get("rope_parameters") or config
    parameters["rope_theta"] = 500000.0
    (changed / "config.json").write_text(json.dumps(config))
    bf16 = [*GDPO, *steps(2), "precision=bf16", f"reference_cache_dir={tmp_path / 'shared'}"]
    cases = {
        "first": ["train", *common(model, data, tmp_path / "run", *bf16)],
        "resumed": ["train", *common(changed, data, tmp_path / "run", *bf16)],
        "fresh": ["train", *common(changed, data, tmp_path / "fresh", *bf16)],
        "alone": ["train", *common(changed, data, tmp_path / "alone", *bf16[:-1])],
    }
    done = several(tmp_path / "logs", cases)
    assert done["first"].status == 0, done["first"].err
    assert done["resumed"].status == 2
    (line,) = done["resumed"].complaints
    assert "resume: " in line
    assert "architecture.rotary_base: 10000.0, now 500000.0" in line
    assert done["fresh"].status == 0, done["fresh"].err
    assert "reference train: computed" in done["fresh"].out
    assert len(list((tmp_path / "shared").iterdir())) == 2
    runs = [without_timing(metrics(tmp_path / name)) for name in ("fresh", "alone", "run")]
    assert runs[0] == runs[1] != runs[2]


def test_a_cache_of_another_key_in_a_runs_own_directory_is_refused(
    tmp_path: Path, model: Path, data: Path
) -> None:
    given = common(model, data, tmp_path / "run", *GDPO)
    done = several(
        tmp_path / "logs",
        {
            "first": ["reference", *given],
            "other": ["reference", *given, "objective.eos_temperature=0.5"],
            "bf16": ["reference", *given, "precision=bf16"],
            "forget": ["!", "rm", str(tmp_path / "run" / IDENTITY)],
            "other unknown": ["reference", *given, "objective.eos_temperature=0.5"],
            "bf16 unknown": ["reference", *given, "precision=bf16"],
        },
    )
    assert done["first"].status == 0
    for name, said in {
        "other": "was made with another objective (objective.eos_temperature: 1.0, now 0.5)",
        "bf16": "precision",
        "other unknown": "belongs to another run: it differs in columns, eos_temperature;",
        "bf16 unknown": "belongs to another run: it differs in precision;",
    }.items():
        assert done[name].status == 2, name
        (line,) = done[name].complaints
        assert said in line


@pytest.mark.parallel
def test_two_ranks_read_a_share_each(tmp_path: Path, model: Path, data: Path) -> None:
    """A shard that is damaged is found by whichever rank it falls to."""
    given = common(model, data, tmp_path / "run", *GDPO, *steps(2), "trainer.devices=2")
    cache = tmp_path / "run" / "reference" / "train"
    damage = (
        "import pathlib, sys; path = sorted(pathlib.Path(sys.argv[1]).glob('shard-*'))"
        "[int(sys.argv[2])]; kept = path.read_bytes(); "
        "path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))"
    )

    def flip(number: int) -> list[str]:
        # Both ranks run it, one after the other or not: the second is to find it done.
        lock = f'mkdir {tmp_path}/done-$0 2>/dev/null && {sys.executable} -c "{damage}" '
        return ["!", "sh", "-c", f"{lock} {cache} {number} || sleep 1", f"{time.monotonic_ns()}"]

    cases = {"made": ["reference", *given]}
    for number in range(2):
        cases |= {f"damaged {number}": flip(number), f"read {number}": ["train", *given]}
        cases[f"mended {number}"] = flip(number)
    done = several(tmp_path / "logs", cases, ranks=2)
    assert done["made"].status == 0, done["made"].err
    names = sorted(path.name for path in cache.glob("shard-*"))
    assert len(names) == 2
    assert all(name.endswith("-of-00002.safetensors") for name in names)
    for number, name in enumerate(names):
        read = done[f"read {number}"]
        assert read.status == 2, read.err
        (line,) = read.complaints
        assert f"{name} is damaged" in line
