"""Verbalised sampling: the prompts that ask for it, what an output holds, and the rows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo import cli
from nemo_gdpo.config.downstream import VerbalisedConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.evaluator import Evaluator
from nemo_gdpo.evaluation.harness.verbalised import Answer, parse, verbalised, wrap
from nemo_gdpo.evaluation.rows import read_run

from ..written_runs import NO_ENCODER, ordinary, point, row, run, write_run
from .test_chat import user


def block(text: str, probability: str) -> str:
    return f"<response>\n<text>{text}</text>\n<probability>{probability}</probability>\n</response>"


TWO = f"Sure!\n{block('A dog.', '0.6')}\n{block(' A <b>cat</b>. ', '3e-1')}"


def test_an_output_becomes_answers() -> None:
    assert parse(TWO, 2) == [Answer("A dog.", 0.6), Answer("A <b>cat</b>.", 0.3)]
    assert parse(block("one\ntwo", "1") + block("x", "0"), 2) == [
        Answer("one\ntwo", 1.0),
        Answer("x", 0.0),
    ]


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        ("A dog. A cat.", "count"),
        (block("a", "0.5"), "count"),
        (TWO + block("c", "0.1"), "count"),
        (TWO + "<response><text>cut", "count"),
        (block("a", "0.5") + "<response>b, 0.5</response>", "form"),
        (block("a", "0.5") + "<response><text>b</text></response>", "form"),
        (block("a", "0.5") + block("b</text><text>c", "0.5"), "form"),
        (block("a", "0.5") + block("b", "50%"), "form"),
        (block("a", "0.5") + block("b", "likely"), "form"),
        (block("a", "0.5") + block("b", "1.5"), "probability"),
        (block("a", "0.5") + block("b", "-0.1"), "probability"),
        (block("a", "0.5") + block("b", "0.1.2"), "probability"),
        (block("a", "0.5") + block("  ", "0.5"), "empty"),
    ],
)
def test_what_is_malformed_is_never_guessed(output: str, fault: str) -> None:
    assert parse(output, 2) == fault


def test_the_request_stands_before_the_text_or_the_last_turn() -> None:
    text = wrap("Name a pet.", 7)
    assert isinstance(text, str)
    assert text.startswith("Give 7 different responses") and text.endswith("\n\nName a pet.")
    chat = [*user("Hi"), {"role": "assistant", "content": "Hello"}, *user("Name a pet.")]
    assert wrap(chat, 7) == [*chat[:2], {"role": "user", "content": text}]
    with pytest.raises(UserError, match="ends with the assistant"):
        wrap(chat[:2], 7)
    # A model that repeats the request has answered nothing.
    assert parse(text, 1) == "count"


def prompts(path: Path) -> str:
    rows = [{"id": name, "prompt": user(f"Review the film {name}.")} for name in ("p", "q", "r")]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def asked(tmp_path: Path) -> dict[str, Any]:
    """Two whole outputs for p, one for q, none for r."""
    settings = {"prompts": prompts(tmp_path / "prompts.jsonl"), "answers": 2}
    written = verbalised(VerbalisedConfig(output_dir=str(tmp_path / "vs"), **settings))
    wrapped = {one["id"]: one["prompt"] for one in map(json.loads, written.open())}
    outputs = {"p": [TWO, TWO], "q": ["no", TWO], "r": [block("a", "0.5"), "no"]}
    rows = [row(name, own, prompt=wrapped[name]) for name, own in outputs.items()]
    return settings | {"generations": str(write_run(tmp_path / "asked", rows))}


def test_from_prompts_to_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows have the original prompts, so they stand beside an ordinary run's."""
    settings = asked(tmp_path)
    samples = tmp_path / "samples"
    written = verbalised(VerbalisedConfig(step="answers", output_dir=str(samples), **settings))
    rows = {one["id"]: one for one in map(json.loads, written.open())}
    assert set(rows) == {"p", "q"}
    assert rows["q"]["prompt"] == user("Review the film q.")
    assert rows["q"]["outputs"] == ["A dog.", "A <b>cat</b>."]
    assert rows["q"]["probabilities"] == [0.6, 0.3]
    assert "6 outputs, 3 of them malformed (count 3); 2 rows of 2 answers, 1 left out" in (
        capsys.readouterr().out
    )
    summary = json.loads((samples / "verbalised.json").read_text())
    assert summary["malformed"] == {"count": 3}
    assert summary["left_out"] == [{"id": "r", "sampling": "T=1", "has": 0}]
    plain = write_run(
        tmp_path / "base", [row(name, ["A dog.", "A dog."]) for name in ("p", "q", "r")]
    )
    results = run(
        tmp_path / "out",
        {"base": plain, "verbalised": samples},
        NO_ENCODER,
        "evaluation.prompts=shared",
    )
    assert point(results, "verbalised").per_prompt["distinct_openings"] == [1.0, 1.0]
    assert point(results, "base").per_prompt["distinct_openings"] == [0.5, 0.5]
    assert results.runs[1].facts["generation.verbalised"] == 2
    # The same step may be done again, but not over other samples.
    verbalised(VerbalisedConfig(step="answers", output_dir=str(samples), **settings))
    with pytest.raises(UserError, match=r"output_dir: .* holds other samples"):
        verbalised(VerbalisedConfig(step="answers", output_dir=str(plain), **settings))


def test_more_answers_than_one_output_has(tmp_path: Path) -> None:
    settings = asked(tmp_path) | {"step": "answers", "output_dir": str(tmp_path / "samples")}
    (only,) = map(json.loads, verbalised(VerbalisedConfig(responses=3, **settings)).open())
    assert only["id"] == "p"
    assert only["outputs"] == ["A dog.", "A <b>cat</b>.", "A dog."]
    with pytest.raises(UserError, match=r"no prompt has 5 answers \(6 outputs, malformed: count 3"):
        verbalised(VerbalisedConfig(responses=5, **settings))


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    settings = asked(tmp_path) | {"step": "answers", "output_dir": str(tmp_path / "samples")}
    with pytest.raises(UserError, match="line 1: its prompt is not what step=prompts writes"):
        verbalised(VerbalisedConfig(**settings | {"answers": 3}))
    with pytest.raises(UserError, match="line 1: its prompt is not what step=prompts writes"):
        verbalised(
            VerbalisedConfig(**settings | {"generations": str(ordinary(tmp_path / "plain"))})
        )


def test_there_is_no_kl_of_verbalised_answers(tmp_path: Path) -> None:
    """Their log-probabilities are not those of the prompt: asked for, it is refused."""
    settings = asked(tmp_path)
    samples = tmp_path / "samples"
    verbalised(VerbalisedConfig(step="answers", output_dir=str(samples), **settings))
    found = read_run("vs", samples)
    assert found.is_verbalised and not read_run("plain", tmp_path / "asked").is_verbalised

    class Stub:
        _reference = object()
        _evaluation = type("Settings", (), {"models": {"vs": "/model"}})

    policy_of: Any = Evaluator.policy_of
    with pytest.raises(UserError, match=r"models\.vs: its answers were verbalised"):
        policy_of(Stub(), found)
    Stub._evaluation.models = {}
    assert policy_of(Stub(), found) is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = prompts(tmp_path / "prompts.jsonl")
    arguments = [f"prompts={path}", f"output_dir={tmp_path / 'vs'}"]
    assert cli.main(["evaluate", "verbalised", *arguments]) == 0
    assert "verbalised.jsonl" in capsys.readouterr().out
    assert cli.main(["evaluate", "verbalised", *arguments[1:]]) == 2
    assert "prompts: is not set" in capsys.readouterr().err
    assert cli.main(["evaluate", "verbalised", *arguments, "step=answers"]) == 2
    assert "generations: is not set" in capsys.readouterr().err
    assert cli.main(["evaluate", "verbalised", *arguments, "answers=1"]) == 2
