"""Real vLLM holds a model that knows nothing to a form, and every answer is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import regex

from nemo_gdpo.errors import EXIT_USER_ERROR
from tests.support.data import write_jsonl
from tests.support.models import save_model

from .sampled_runs import generate, rows

pytestmark = pytest.mark.engine

PATTERN = "(good|bad|dull) film( and (long|short))?"
GRAMMAR = 'root ::= word " film"\nword ::= "good" | "bad"\n'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("constrained")
    save_model(made / "model", head_dim=32)
    write_jsonl(made / "prompts.jsonl", [{"id": n, "prompt": f"the {n}"} for n in ("a", "b")])
    return made


def command(root: Path, name: str, *more: str) -> list[str]:
    return [
        f"model.restore_from_path={root / 'model'}",
        f"data.prompts_path={root / 'prompts.jsonl'}",
        f"output_dir={root / name}",
        "generation.num_samples=8",
        "generation.max_tokens=48",
        *more,
    ]


def outputs(directory: Path) -> list[str]:
    return [text for row in rows(directory).values() for text in row["outputs"]]


@pytest.mark.nightly
def test_an_expression_is_honoured(root: Path) -> None:
    (root / "asked.yaml").write_text(json.dumps({"constraints": {"regex": PATTERN}}))
    done = generate(*command(root, "regex"), "--config", str(root / "asked.yaml"))
    assert done.status == 0, done.err
    texts = outputs(root / "regex")
    assert len(texts) == 16
    assert all(regex.fullmatch(PATTERN, text) for text in texts), texts
    assert len(set(texts)) > 1
    assert all(row["constraints_met"] == [True] * 8 for row in rows(root / "regex").values())
    assert all(set(row["finish_reasons"]) == {"stop"} for row in rows(root / "regex").values())
    assert "0 of 16 samples broke regex" in done.out


@pytest.mark.nightly
def test_without_enforcement_the_same_model_breaks_it(root: Path) -> None:
    (root / "free.yaml").write_text(
        json.dumps({"constraints": {"regex": PATTERN, "enforce": False}})
    )
    done = generate(*command(root, "free"), "--config", str(root / "free.yaml"))
    assert done.status == 0, done.err
    assert "16 of 16 samples broke regex" in done.out
    assert all(row["broken"] == [["regex"]] * 8 for row in rows(root / "free").values())


def test_a_grammar_is_honoured_and_checked(root: Path) -> None:
    (root / "film.gbnf").write_text(GRAMMAR)
    asked = (f"constraints.grammar={root / 'film.gbnf'}", "constraints.forbidden=[bad]")
    done = generate(*command(root, "grammar"), *asked)
    assert done.status == 0, done.err
    texts = outputs(root / "grammar")
    assert set(texts) == {"good film", "bad film"}
    assert "0 of 16 samples broke grammar" in done.out
    assert f"{texts.count('bad film')} of 16 samples broke forbidden.bad" in done.out


def test_what_is_no_grammar_is_one_line(root: Path) -> None:
    (root / "wrong.gbnf").write_text('root ::= ("a"')
    done = generate(*command(root, "wrong"), f"constraints.grammar={root / 'wrong.gbnf'}")
    assert done.status == EXIT_USER_ERROR
    assert "constraints.grammar: this is no grammar (" in done.err
    assert "Traceback" not in done.err
