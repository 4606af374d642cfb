"""Reading generations: bad rows are named with file and line, runs are brought into one order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.rows import Generations, align, read_run
from nemo_gdpo.generation.types import SamplingPoint

from .written_runs import PLAIN, at, row, write_run

T1 = SamplingPoint(1.0, 1.0, 0.0, 0)


def read(directory: Path, *rows: Any, name: str = "run") -> Generations:
    return read_run(name, write_run(directory, rows))


def test_points_and_prompts(tmp_path: Path) -> None:
    write_run(tmp_path, [row("b", ["x"]), row("a", ["y"])])
    write_run(
        tmp_path, [row("a", ["z"], sampling=at(0.7)), row("b", ["w"], sampling=at(0.7))], shard=1
    )
    run = read_run("run", tmp_path)
    assert run.prompt_ids == ("b", "a")
    assert [point.temperature for point in run.points] == [0.7, 1.0]
    (aligned,) = align([run], shared=False)
    assert [r.outputs for r in aligned.points[SamplingPoint(0.7, 1.0, 0.0, 0)]] == [("z",), ("w",)]


def test_tokens_are_kept(tmp_path: Path) -> None:
    run = read(tmp_path, row("a", ["x", "y"], token_ids=[[1, 2], []], prompt_token_ids=[5]))
    (only,) = run.points[T1]
    assert only.token_ids == ((1, 2), ())
    assert only.prompt_token_ids == (5,)


def test_settings_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": {"max_tokens": 64}}))
    assert read(tmp_path, row("a", ["x"])).settings == {"max_tokens": 64}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"id": None}, "id is missing"),
    "number for an id": ({"id": 3}, "id is missing or not a text"),
    "no outputs": ({"outputs": []}, "outputs is not a list of texts"),
    "a number": ({"outputs": ["x", 3]}, "outputs is not a list of texts"),
    "text for a list": ({"outputs": "text"}, "outputs is missing or not a list"),
    "one reason": ({"finish_reasons": ["stop"]}, "1 finish_reasons for 2 outputs"),
    "prompt": ({"prompt": [{"role": "user"}]}, "neither text nor a list of messages"),
    "empty prompt": ({"prompt": ""}, "neither text nor"),
    "sampling": ({"sampling": {"temperature": 1.0}}, "sampling does not hold exactly"),
    "more sampling": ({"sampling": PLAIN | {"beams": 4}}, "sampling does not hold exactly"),
    "text in sampling": ({"sampling": PLAIN | {"top_p": "1"}}, "sampling.top_p is '1'"),
    "real top_k": ({"sampling": PLAIN | {"top_k": 1.5}}, "sampling.top_k is 1.5"),
    "few tokens": ({"token_ids": [[1]]}, "token_ids are not a list of ids for each output"),
    "real tokens": ({"token_ids": [[1], [1.5]]}, "token_ids are not"),
    "prompt tokens": ({"prompt_token_ids": [-1]}, "prompt_token_ids is not a list of ids"),
    "half a character": ({"outputs": ["x", "\ud83d"]}, r"outputs\[1\] holds half of a surrogate"),
    "no hash": ({"model_hash": ""}, "model_hash is missing"),
    "other hash": ({"model_hash": "b" * 64}, "model_hash is another"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(tmp_path: Path, name: str) -> None:
    changes, complaint = BAD[name]
    with pytest.raises(UserError, match=complaint) as caught:
        read(tmp_path, row("a", ["x", "y"]), row("b", ["x", "y"]) | changes)
    assert str(caught.value).startswith(f"{tmp_path / 'generations-00000.jsonl'}, line 2: ")


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2: damaged"):
        read(tmp_path / "a", row("a", ["x"]), "{not json\n")
    with pytest.raises(UserError, match=r"line 2: the same row as .*line 1"):
        read(tmp_path / "b", row("a", ["x"]), row("a", ["y"]))
    with pytest.raises(UserError, match="no complete row yet"):
        read(tmp_path / "c", '{"id": "torn')
    with pytest.raises(UserError, match=r"evaluation.runs.run: .* has no generations"):
        (tmp_path / "empty").mkdir()
        read_run("run", tmp_path / "empty")
    with pytest.raises(UserError, match="is not a directory"):
        read_run("run", tmp_path / "nowhere")


# --- several runs ---------------------------------------------------------------------------


def two(tmp_path: Path, first: list[Any], second: list[Any]) -> list[Generations]:
    return [
        read(tmp_path / "base", *first, name="base"),
        read(tmp_path / "gdpo", *second, name="gdpo"),
    ]


def test_runs_come_into_the_order_of_the_ids(tmp_path: Path) -> None:
    runs = two(tmp_path, [row("b", ["3"]), row("a", ["4"])], [row("b", ["3"]), row("a", ["4"])])
    for second in align(runs, shared=False):
        assert second.prompt_ids == ("a", "b")
        assert [r.outputs[0] for r in second.points[T1]] == ["4", "3"]


def test_prompts_that_differ_are_refused_or_left_out(tmp_path: Path) -> None:
    runs = two(tmp_path, [row("a", ["1"]), row("b", ["2"])], [row("c", ["3"]), row("a", ["4"])])
    with pytest.raises(UserError, match=r"gdpo at T=1 lacks 1 of 3 prompts \('b'\).*=shared"):
        align(runs, shared=False)
    assert [run.prompt_ids for run in align(runs, shared=True)] == [("a",), ("a",)]


def test_more_prompts_than_the_first_run(tmp_path: Path) -> None:
    runs = two(tmp_path, [row("a", ["1"])], [row("c", ["3"]), row("a", ["4"])])
    with pytest.raises(UserError, match=r"gdpo at T=1 has 1 prompts that base lacks \('c'\)"):
        align(runs, shared=False)


def test_a_point_that_is_not_complete(tmp_path: Path) -> None:
    runs = [read(tmp_path, row("a", ["1"]), row("b", ["1"]), row("a", ["1"], sampling=at(0.5)))]
    with pytest.raises(UserError, match=r"run at T=0.5 lacks 1 of 2 prompts \('b'\)"):
        align(runs, shared=False)
    assert align(runs, shared=True)[0].prompt_ids == ("a",)


def test_nothing_shared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt is in all"):
        align(two(tmp_path, [row("a", ["1"])], [row("b", ["1"])]), shared=True)


def test_the_same_id_with_another_prompt(tmp_path: Path) -> None:
    runs = two(tmp_path, [row("a", ["1"], prompt="x")], [row("a", ["1"], prompt="y")])
    for shared in (False, True):
        with pytest.raises(UserError, match=r"id 'a' has another prompt than in .*base"):
            align(runs, shared=shared)


def test_another_number_of_responses(tmp_path: Path) -> None:
    """Most figures of diversity depend on it, so they could not be compared."""
    runs = two(tmp_path, [row("a", ["1", "2"])], [row("a", ["1"])])
    with pytest.raises(UserError, match=r"line 1: 1 responses, and 2 in .*sample equally many"):
        align(runs, shared=True)
