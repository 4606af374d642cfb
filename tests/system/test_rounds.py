"""`nemo-gdpo rounds` with real vLLM and real training: two rounds of groups, one of pairs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.rounds.plan import Plan
from tests.support.commands import QUIET, Result, finish, started, steps
from tests.support.data import write_jsonl
from tests.support.models import save_model

pytestmark = pytest.mark.engine

TEXTS = ["good film", "dull review", "very long", "liked it"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rounds")
    save_model(place / "model", head_dim=32)
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    rows = [{"id": f"p{n}", "prompt": turn} for n, turn in enumerate(turns)]
    write_jsonl(place / "prompts.jsonl", rows)
    return place


def command(root: Path, output: str, *more: str) -> list[str]:
    return [
        f"model.restore_from_path={root / 'model'}",
        f"rounds.prompts_path={root / 'prompts.jsonl'}",
        f"output_dir={root / output}",
        "rounds.rewards=[{kind: python, entry_point: 'tests.rounds.stand_in:words_of'}]",
        "rounds.encoder=null",
        "generation.num_samples=8",
        "generation.max_tokens=48",
        "generation.logprobs=cumulative",
        # A random model ends by chance only.
        "generation.stop=[e,a]",
        "constraints.max_words=20",
        "model.global_batch_size=4",
        "model.micro_batch_size=2",
        "data.packing=false",
        "data.max_length=96",
        "data.max_prompt_length=48",
        "optim.lr=1e-3",
        *QUIET[:1],
        *steps(3),
        *more,
    ]


def rounds(*overrides: str) -> Result:
    with started("rounds", *overrides) as process:
        out, err = process.communicate(timeout=1800)
    return Result(process.returncode, out, err)


GROUPS = ["objective=gflownet", "data.group_size=4", "rounds.replay.share=0.5", "rounds.number=2"]


def test_two_rounds_of_groups(root: Path) -> None:
    done = rounds(*command(root, "groups", *GROUPS))
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
    done = rounds(*command(root, "groups", *GROUPS))
    assert done.status == 0, done.err
    assert "round 1 of" not in done.out
    again = output / "again"
    file = str(output / "round_002/data.yaml")
    with started("rounds", "groups", "--config", file, f"output_dir={again}") as process:
        assert finish(process).status == 0
    ours = (again / "groups.jsonl").read_bytes()
    assert ours == (output / "round_002/data/groups.jsonl").read_bytes()


def test_a_round_of_pairs(root: Path) -> None:
    done = rounds(*command(root, "pairs", "objective=dpo", "rounds.number=1"))
    assert done.status == 0, done.err
    pairs = [
        json.loads(line)
        for line in (root / "pairs/round_001/data/pairs.jsonl").read_text().splitlines()
    ]
    assert pairs and all(pair["chosen_score"] > pair["rejected_score"] for pair in pairs)
    assert (root / "pairs/round_001/train/hf/model.safetensors").is_file()


def stages_done(output: Path) -> int:
    path = output / "rounds.json"
    return len(json.loads(path.read_text())["stages"]) if path.is_file() else 0


def kept(output: Path) -> dict[str, bytes]:
    """What the rounds are for: answers, scores, groups, weights, lines; without its own place."""
    files = [
        *(path for kind in ("samples/*.jsonl", "scored/*.jsonl", "data/groups.jsonl")
          for path in output.glob(f"round_*/{kind}")),
        *output.glob("round_*/train/hf/model.safetensors"),
        output / "rounds.jsonl",
    ]  # fmt: skip
    return {
        path.relative_to(output).as_posix(): path.read_bytes().replace(bytes(output), b"OUT")
        for path in files
    }


@pytest.mark.nightly
def test_killed_after_every_stage_and_resumed_is_uninterrupted(root: Path) -> None:
    """`kill -9` of the command alone: what it had started ends as well, and nothing is lost."""
    if not (root / "groups" / "report.html").is_file():
        assert rounds(*command(root, "groups", *GROUPS)).status == 0
    output, kills = root / "killed", 0
    while True:
        with started("rounds", *command(root, "killed", *GROUPS)) as process:
            before = stages_done(output)
            while process.poll() is None and stages_done(output) == before:
                time.sleep(0.01)
            if process.poll() is None:
                process.kill()
                process.wait()
                kills += 1
                # Of the same session: the stage that had just begun.
                wait_for_nobody(process.pid)
                continue
        assert process.returncode == 0, process.stderr
        break
    assert kills == len(list(Plan(2).stages()))
    expected, found = kept(root / "groups"), kept(output)
    assert len(expected) == 11
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


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
