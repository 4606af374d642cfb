"""`nemo-gdpo rounds` with real vLLM and real training: two rounds of groups, one of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_gdpo.conversion.fingerprint import weights_fingerprint
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
