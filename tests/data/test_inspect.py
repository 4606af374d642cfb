"""Looking at the data of a configuration: all problems at once, through the real commands, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo import cli
from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.data.from_config import SPLITS
from nemo_gdpo.data.inspect import inspect_data
from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from nemo_gdpo.training.first_look import refuse_bad_pairs
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def arguments(model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def of(rows: list[Any], *more: str) -> list[str]:
        return [
            f"model.restore_from_path={model}",
            f"data.train_path={write_jsonl(tmp_path / 'train.jsonl', rows)}",
            f"output_dir={tmp_path / 'out'}",
            "data.max_length=96",
            "data.max_prompt_length=48",
            *more,
        ]

    return of


def config(overrides: list[str]) -> RunConfig:
    return TRAIN.parse(compose(overrides, TRAIN).plain)


def bad_rows() -> list[Any]:
    """Eight pairs; wrong: lines 2 (no JSON), 4 (empty), 6 (special token), 8 (null)."""
    rows: list[Any] = pairs(8)
    rows[1] = "{"
    rows[3] |= {"rejected": [{"role": "assistant", "content": " "}]}
    rows[5] |= {"chosen": [{"role": "assistant", "content": "x<|eot_id|>"}]}
    rows[7] |= {"chosen": None}
    return rows


def test_validate_names_all_of_them(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["validate", *arguments(bad_rows()), "optim.lr=-1"]) == EXIT_USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert "optim.lr" in lines[0]
    assert [line.partition("train.jsonl, ")[2][:6] for line in lines[1:5]] == [
        f"line {n}" for n in (2, 4, 6, 8)
    ]
    assert lines[-1] == "nemo-gdpo: 5 problems found"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "prepare", "reference"])
def test_the_others_name_them_before_anything_is_made(
    verb: str,
    arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert cli.main([verb, *arguments(bad_rows())]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert "4 problems:" in captured.err
    assert all(f"train.jsonl, line {n}" in captured.err for n in (2, 4, 6, 8))
    assert not (tmp_path / "out").exists()


def test_validate_says_what_it_read(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = pairs(8)
    rows[0] |= {"chosen": [{"role": "assistant", "content": ""}]}
    held_out = write_jsonl(tmp_path / "held_out.jsonl", pairs(4, seed=3))
    given = arguments(rows, f"data.validation_path={held_out}", "data.on_bad_pair=drop")
    assert cli.main(["validate", *given]) == EXIT_DONE
    out = capsys.readouterr().out
    assert "  train      7 pairs, dropped: 1 empty response\n" in out
    assert "  validation 4 pairs\n" in out
    assert "note:" not in out


def test_only_the_first_rows_unless_all_are_asked_for(
    arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nemo_gdpo.data.inspect.FIRST_ROWS", 6)
    rows: list[Any] = [*pairs(8), "{"]
    assert cli.main(["validate", *arguments(rows)]) == EXIT_DONE
    assert "  train      6 pairs in the first 6 rows\n" in capsys.readouterr().out
    assert cli.main(["validate", *arguments(rows), "--all-rows"]) == EXIT_USER_ERROR
    assert "train.jsonl, line 9: not valid JSON" in capsys.readouterr().err
    assert cli.main(["validate", "--all-rows", "--elsewhere"]) == EXIT_USER_ERROR
    assert "--all-rows: with --elsewhere no rows are read" in capsys.readouterr().err


def test_many_alike_are_counted(arguments: Callable[..., list[str]]) -> None:
    rows: list[Any] = pairs(40)
    for row in rows[5:]:
        row |= {"chosen": [{"role": "assistant", "content": ""}]}
    problems = inspect_data(config(arguments(rows))).problems
    assert len(problems) == 10
    assert "line 6, pair 'pair-5': empty response (chosen)" in problems[0]
    assert problems[-1].endswith("(and 25 more like it)")


def test_a_template_that_fails_is_said_once(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ 1 / 0 }}")
    given = arguments(pairs(8), f"data.chat_template={template}")
    (problem,) = inspect_data(config(given)).problems
    assert "line 1, pair 'pair-0': chat template: it fails with ZeroDivisionError" in problem


def test_scores_that_are_missing_everywhere_are_said_once(
    arguments: Callable[..., list[str]],
) -> None:
    given = arguments(pairs(8, scores=False), "objective=odpo")
    (problem,) = inspect_data(config(given)).problems
    assert "line 1, pair 'pair-0': no scores, and this objective needs them" in problem


@pytest.mark.parametrize("verb", ["prepare", "validate", "train"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train_path=null", "data.train_path: is not set"),
        ("data.train_path=/no.jsonl", "data.train_path: /no.jsonl does not exist"),
        ("data.chat_template=/no.jinja", "data.chat_template: /no.jinja is not a file"),
        ("data.max_prompt_length=96", "data.max_prompt_length: 96 leaves no room"),
        ("model.restore_from_path=/no", "model.restore_from_path: /no does not exist"),
    ],
)
def test_prepare_checks_what_validate_does(
    verb: str,
    override: str,
    said: str,
    arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert cli.main([verb, *arguments(pairs(8)), override]) == EXIT_USER_ERROR
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prepare_writes_nothing_before_all_was_read(
    arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    only_two = {"rows": 2, "faulty": ()}
    monkeypatch.setattr(inspect_data, "__kwdefaults__", only_two)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [*pairs(4, seed=3), "{"])
    given = arguments(pairs(8), f"data.validation_path={held_out}")
    assert cli.main(["prepare", *given]) == EXIT_USER_ERROR
    assert "held_out.jsonl, line 5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    write_jsonl(held_out, pairs(4, seed=3))
    assert cli.main(["prepare", *given]) == EXIT_DONE
    assert (tmp_path / "out" / "train" / "manifest.json").is_file()
    ready = [*given, *(f"data.{name}_path={tmp_path / 'out' / name}" for name in SPLITS)]
    capsys.readouterr()
    assert cli.main(["validate", *ready]) == EXIT_DONE
    assert "  train      8 prepared pairs\n" in capsys.readouterr().out
    assert cli.main(["validate", *ready, "data.max_length=64"]) == EXIT_USER_ERROR
    assert "prepared with other settings (max_length 96 instead of 64)" in capsys.readouterr().err


def test_what_training_and_validation_share(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = pairs(8)
    same = arguments(rows, f"data.validation_path={tmp_path / 'train.jsonl'}")
    assert cli.main(["validate", *same]) == EXIT_DONE
    assert "note: validation: 8 of its 8 pairs are also trained on" in capsys.readouterr().out
    others = [row | {"id": f"other {n}"} for n, row in enumerate(pairs(4, seed=5))]
    some = write_jsonl(tmp_path / "some.jsonl", [*rows[:3], *others])
    assert cli.main(["prepare", *arguments(rows, f"data.validation_path={some}")]) == EXIT_DONE
    assert "note: validation: 3 of its 7 pairs are also trained on" in capsys.readouterr().out


def test_contradictions_are_named(arguments: Callable[..., list[str]]) -> None:
    row = pairs(1)[0]
    swapped = {**row, "id": "x", "chosen": row["rejected"], "rejected": row["chosen"]}
    again = {**row, "id": "y"}
    for name in ("chosen_score", "rejected_score"):
        swapped.pop(name)
    remarks = inspect_data(config(arguments([row, swapped, again]))).remarks
    assert len(remarks) == 2
    assert "train: 2 pairs prefer the response that another pair" in remarks[0]
    assert "line 1, pair 'pair-0' and " in remarks[0] and "line 2, pair 'x'" in remarks[0]
    assert remarks[1] == "train: 1 pairs occur more than once"


def test_without_a_tokenizer_rows_are_read_all_the_same(
    arguments: Callable[..., list[str]], model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((model / "config.json").read_bytes())
    given = arguments(bad_rows(), f"model.restore_from_path={bare}")
    assert len(inspect_data(config(given)).problems) == 3  # a special token needs a tokenizer
    (bare / "tokenizer.json").write_text("{")
    problems = inspect_data(config(given)).problems
    assert len(problems) == 4
    assert "model.restore_from_path=" in problems[0] and "no tokenizer can be" in problems[0]


def test_the_whole_data_is_read_before_a_conversion(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    rows: list[Any] = [*pairs(1200), "{"]
    plain, converting = arguments(rows), arguments(rows, "model.cache_converted=true")
    refuse_bad_pairs(config(plain))
    with pytest.raises(UserError, match="line 1201: not valid JSON"):
        refuse_bad_pairs(config(converting))
    # What an earlier start has tokenised was read then.
    prepared = tmp_path / "out" / "data" / "train"
    prepared.mkdir(parents=True)
    for name in ("manifest.json", "pairs.safetensors"):
        (prepared / name).write_text(json.dumps({}))
    refuse_bad_pairs(config(converting))
