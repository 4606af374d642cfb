"""`nemo-gdpo rounds` with real vLLM and real training: two rounds of groups, one of pairs."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.conversion.formats.peft import look_at_peft
from nemo_gdpo.rounds.plan import Plan
from tests.support.commands import Result, finish, started
from tests.support.tiny_rounds import overrides, prepare, stages_done

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("rounds"))


def rounds(*command: str) -> Result:
    with started("rounds", *command) as process:
        out, err = process.communicate(timeout=1800)
    return Result(process.returncode, out, err)


GROUPS = ["objective=gflownet", "data.group_size=4", "rounds.replay.share=0.5", "rounds.number=2"]


def test_two_rounds_of_groups(root: Path) -> None:
    done = rounds(*overrides(root, "groups", *GROUPS))
    assert done.status == 0, done.err
    output = root / "groups"
    lines = [json.loads(line) for line in (output / "rounds.jsonl").read_text().splitlines()]
    # The first round samples from the reference itself; its reference's numbers are its own.
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[0]["replayed"] == 0.0 and lines[1]["replayed"] > 0.0
    assert lines[0]["updates"] == lines[1]["updates"] == 3
    first = json.loads((output / "round_001/samples/manifest.json").read_text())
    second = json.loads((output / "round_002/samples/manifest.json").read_text())
    assert first["model"]["hash"] == weights_fingerprint(root / "model")
    assert second["model"]["hash"] == weights_fingerprint(output / "round_001/train/hf")
    # Trained against the first model: log-probs of policy and reference differ from the start.
    assert abs(lines[1]["kl"]) > 1e-3
    assert "<svg" in (output / "report.html").read_text()


def test_the_same_command_does_nothing_and_a_round_can_be_repeated(root: Path) -> None:
    output = root / "groups"
    done = rounds(*overrides(root, "groups", *GROUPS))
    assert done.status == 0, done.err
    assert "round 1 of" not in done.out
    again = output / "again"
    file = str(output / "round_002/data.yaml")
    with started("rounds", "groups", "--config", file, f"output_dir={again}") as process:
        assert finish(process).status == 0
    ours = (again / "groups.jsonl").read_bytes()
    assert ours == (output / "round_002/data/groups.jsonl").read_bytes()


@pytest.mark.nightly
def test_a_round_of_pairs(root: Path) -> None:
    done = rounds(*overrides(root, "pairs", "objective=dpo", "rounds.number=1"))
    assert done.status == 0, done.err
    pairs = [
        json.loads(line)
        for line in (root / "pairs/round_001/data/pairs.jsonl").read_text().splitlines()
    ]
    assert pairs and all(pair["chosen_score"] > pair["rejected_score"] for pair in pairs)
    assert (root / "pairs/round_001/train/hf/model.safetensors").is_file()


def kept(output: Path) -> dict[str, bytes]:
    """What the rounds are for: answers, scores, groups, weights, lines; without its own place."""
    files = [
        *(path for kind in ("samples/*.jsonl", "scored/*.jsonl", "data/groups.jsonl")
          for path in output.glob(f"round_*/{kind}")),
        *output.glob("round_*/train/hf/model.safetensors"),
        *output.glob("round_*/train/peft/adapter_model.safetensors"),
        output / "rounds.jsonl",
    ]  # fmt: skip
    return {
        path.relative_to(output).as_posix(): path.read_bytes().replace(bytes(output), b"OUT")
        for path in files
    }


def run_killed(root: Path, name: str, *given: str, every: int = 1) -> int:
    """Run, with a `kill -9` after every stage or some of them; returns how many there were.

    Of the command alone: what it had started ends as well.
    """
    output, kills = root / name, 0
    while True:
        with started("rounds", *overrides(root, name, *given)) as process:
            before = len(stages_done(output))
            while process.poll() is None and len(stages_done(output)) < before + every:
                time.sleep(0.01)
            if process.poll() is None:
                process.kill()
                process.wait()
                kills += 1
                # Of the same session: the stage that had just begun.
                wait_for_nobody(process.pid)
                continue
            assert process.returncode == 0, process.communicate()[1]
        return kills


@pytest.mark.nightly
def test_killed_after_every_stage_and_resumed_is_uninterrupted(root: Path) -> None:
    if not (root / "groups" / "report.html").is_file():
        assert rounds(*overrides(root, "groups", *GROUPS)).status == 0
    assert run_killed(root, "killed", *GROUPS) == len(list(Plan(2).stages()))
    expected, found = kept(root / "groups"), kept(root / "killed")
    assert len(expected) == 11
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


ADAPTER = [*GROUPS, "lora.rank=4", "lora.alpha=8", "reference=adapter_off", "optim.lr=0.02"]


@pytest.mark.nightly
def test_rounds_of_an_adapter(root: Path) -> None:
    """vLLM adds what a round has trained to the first model, and the next round goes on from it."""
    base = weights_fingerprint(root / "model")
    done = rounds(*overrides(root, "adapter", *ADAPTER))
    assert done.status == 0, done.err
    output = root / "adapter"
    adapters = [look_at_peft(output / f"round_00{n}" / "train" / "peft").sha256 for n in (1, 2)]
    assert adapters[0] != adapters[1]
    hashes = [
        json.loads((output / f"round_00{n}/samples/manifest.json").read_text())["model"]["hash"]
        for n in (1, 2)
    ]
    assert hashes == [base, hashlib.sha256(f"{base}+{adapters[0]}".encode()).hexdigest()]
    first, second = (
        json.loads(line) for line in (output / "rounds.jsonl").read_text().splitlines()
    )
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert abs(second["kl"]) > 1e-3
    # Killed after three of the eight stages, and after three more.
    assert run_killed(root, "adapter-killed", *ADAPTER, every=3) == 2
    expected, found = kept(output), kept(root / "adapter-killed")
    assert any("peft" in name for name in expected) and found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert weights_fingerprint(root / "model") == base


def wait_for_nobody(session: int) -> None:
    """Until no process of a session is left.

    Raises:
        AssertionError: some live on.
    """
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        left = [path for path in Path("/proc").glob("[0-9]*") if session_of(path) == session]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"processes of a killed command live on: {left}")


def session_of(process: Path) -> int | None:
    """Of a process that is no zombie."""
    try:
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:  # it has ended
        return None
    return None if state == "Z" else int(session)
