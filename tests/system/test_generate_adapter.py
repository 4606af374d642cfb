"""vLLM adds an adapter to its base as it runs: the samples are those of the merged model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemo_gdpo.errors import EXIT_USER_ERROR
from tests.support.commands import cli, common, steps
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

from .sampled_runs import PROMPTS, Rows, generate, rows

pytestmark = [pytest.mark.engine, pytest.mark.nightly]


@dataclass(frozen=True)
class Adapted:
    """A run of adapters, and greedy samples of three models."""

    root: Path
    base: Rows
    merged: Rows
    served: Rows


def command(root: Path, name: str, *more: str, model: str = "base") -> list[str]:
    return [
        f"model.restore_from_path={root / model}",
        f"data.prompts_path={root / 'prompts.jsonl'}",
        f"output_dir={root / name}",
        "generation=greedy",
        "generation.num_samples=1",
        "generation.max_tokens=12",
        "generation.logprobs=tokens",
        *more,
    ]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    root = tmp_path_factory.mktemp("served")
    save_model(root / "base", head_dim=32)
    save_model(root / "other", head_dim=32, seed=8)
    data = write_jsonl(root / "pairs.jsonl", pairs(8))
    prompts = [{"id": key, "prompt": text} for key, text in PROMPTS.items()]
    write_jsonl(root / "prompts.jsonl", prompts)
    trained = cli(
        "train",
        *common(root / "base", data, root / "run", "objective=dpo", *steps(3), "export_hf=true"),
        "lora.rank=4", "reference=adapter_off", "optim.lr=0.05", "optim.sched.name=constant",
    )  # fmt: skip
    assert trained.status == 0, trained.err
    adapter = f"model.adapter_path={root / 'run' / 'peft'}"
    for name, given in {
        "of-base": command(root, "of-base"),
        "of-merged": command(root, "of-merged", model="run/hf"),
        "of-served": command(root, "of-served", adapter),
    }.items():
        done = generate(*given)
        assert done.status == 0, f"{name}: {done.err}"
    return Adapted(root, *(rows(root / name) for name in ("of-base", "of-merged", "of-served")))


def test_samples_are_those_of_the_merged_model(adapted: Adapted) -> None:
    assert adapted.served.keys() == adapted.merged.keys()
    for key, merged in adapted.merged.items():
        served = adapted.served[key]
        assert served["token_ids"] == merged["token_ids"]
        pairs_of = zip(served["token_logprobs"][0], merged["token_logprobs"][0], strict=True)
        assert all(math.isclose(one, other, abs_tol=1e-3) for one, other in pairs_of)


def test_the_adapter_matters(adapted: Adapted) -> None:
    changed = [
        key for key, row in adapted.base.items()
        if row["token_logprobs"] != adapted.served[key]["token_logprobs"]
    ]  # fmt: skip
    assert len(changed) == len(PROMPTS)


def test_base_and_adapter_are_another_model(adapted: Adapted) -> None:
    hashes = {
        name: json.loads((adapted.root / name / "manifest.json").read_text())["model"]["hash"]
        for name in ("of-base", "of-merged", "of-served")
    }
    assert len(set(hashes.values())) == 3


def test_an_adapter_of_another_base_is_refused(adapted: Adapted) -> None:
    adapter = f"model.adapter_path={adapted.root / 'run' / 'peft'}"
    done = generate(*command(adapted.root, "of-other", adapter, model="other"))
    assert done.status == EXIT_USER_ERROR
    assert "is an adapter of another model than model.restore_from_path" in done.err
    assert not (adapted.root / "of-other").exists()
