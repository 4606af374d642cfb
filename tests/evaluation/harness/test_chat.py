"""AlpacaEval's and MT-Bench's files: what their readers need, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo import cli
from nemo_gdpo.config.downstream import AlpacaEvalConfig, MtBenchConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.harness.chat import mt_bench, read_questions, write_alpaca_eval

PLAIN = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0}


def generations(directory: Path, rows: list[dict[str, Any]], **sampling: float) -> str:
    """A directory as `nemo-gdpo generate` leaves it; a second call adds a point of the sweep."""
    directory.mkdir(exist_ok=True)
    with (directory / "generations-00000.jsonl").open("a") as file:
        for row in rows:
            full = {
                "finish_reasons": ["stop"] * len(row["outputs"]),
                "sampling": PLAIN | sampling,
                "model_hash": "f" * 64,
                **row,
            }
            file.write(json.dumps(full) + "\n")
    return str(directory)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def answered(tmp_path: Path) -> str:
    rows = [
        {"id": "a", "prompt": user("Name a fruit."), "outputs": ["An apple.", "A fig."]},
        {"id": "b", "prompt": "Name a tree.", "outputs": ["An oak 🌳", "An ash."]},
    ]
    return generations(tmp_path / "gen", rows)


def test_alpaca_eval_rows(tmp_path: Path, answered: str) -> None:
    path = tmp_path / "out" / "model_outputs.json"
    config = AlpacaEvalConfig(generations=answered, generator="gdpo-8b", sample=1, output=str(path))
    assert write_alpaca_eval(config) == path
    assert json.loads(path.read_text()) == [
        {
            "instruction": "Name a fruit.",
            "output": "A fig.",
            "generator": "gdpo-8b",
            "dataset": "helpful_base",
        },
        {
            "instruction": "Name a tree.",
            "output": "An ash.",
            "generator": "gdpo-8b",
            "dataset": "helpful_base",
        },
    ]


def test_alpaca_eval_takes_order_and_data_set_from_its_own_file(
    tmp_path: Path, answered: str
) -> None:
    own = [
        {"instruction": "Name a tree.", "dataset": "koala", "output": "x", "generator": "y"},
        {"instruction": "Name a fruit.", "dataset": "vicuna", "output": "x", "generator": "y"},
    ]
    (tmp_path / "eval.json").write_text(json.dumps(own))
    config = AlpacaEvalConfig(
        generations=answered,
        generator="g",
        instructions=str(tmp_path / "eval.json"),
        output=str(tmp_path / "o.json"),
    )
    found = json.loads(write_alpaca_eval(config).read_text())
    assert [(row["dataset"], row["output"]) for row in found] == [
        ("koala", "An oak 🌳"),
        ("vicuna", "An apple."),
    ]
    own.append({"instruction": "Name a tree .", "dataset": "koala"})
    (tmp_path / "eval.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match=r"1 of 3 .* first 'Name a tree .'"):
        write_alpaca_eval(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generations": None}, "generations: is not set"),
        ({"generator": None}, "generator: is not set"),
        ({"sample": 2}, "has 2 responses; they count from 0"),
        ({"sampling": {"temperature": 0.3}}, r"no point of .* \(sampled at T=1\) fit"),
    ],
)
def test_alpaca_eval_refuses(
    tmp_path: Path, answered: str, change: dict[str, Any], message: str
) -> None:
    settings = {"generations": answered, "generator": "g", "output": str(tmp_path / "o.json")}
    with pytest.raises(UserError, match=message):
        write_alpaca_eval(AlpacaEvalConfig(**(settings | change)))
    assert not (tmp_path / "o.json").exists()


def test_one_point_of_a_sweep_has_to_be_chosen(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "Name a fruit."}
    where = generations(tmp_path / "g", [{**row, "outputs": ["hot"]}], temperature=1.3)
    generations(tmp_path / "g", [{**row, "outputs": ["cold"]}], temperature=0.7)
    out = str(tmp_path / "o.json")
    with pytest.raises(UserError, match=r"2 points of .* \(sampled at T=0.7, T=1.3\) fit"):
        write_alpaca_eval(AlpacaEvalConfig(generations=where, generator="g", output=out))
    arguments = [f"generations={where}", "generator=g", f"output={out}"]
    assert cli.main(["evaluate", "alpaca-eval", *arguments, "sampling.temperature=0.7"]) == 0
    assert json.loads(Path(out).read_text())[0]["output"] == "cold"


def test_alpaca_eval_has_single_instructions_only(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, *user("Hello.")]
    where = generations(tmp_path / "g", [{"id": "a", "prompt": talk, "outputs": ["Hi."]}])
    with pytest.raises(UserError, match=r"line 1: the prompt is a conversation"):
        write_alpaca_eval(AlpacaEvalConfig(generations=where, generator="g"))


QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a haiku.", "Now without a verb."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who won?", "Why?"], "reference": []},
]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS) + "\n")
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_turns_of_mt_bench(tmp_path: Path, questions: str) -> None:
    out = str(tmp_path / "mt")
    first = lines(mt_bench(MtBenchConfig(questions=questions, output_dir=out), now=0.0))
    assert first == [
        {"id": "81", "prompt": user("Write a haiku.")},
        {"id": "101", "prompt": user("Who won?")},
    ]
    # What a model says to them, the second response to each being the one continued.
    turn1 = generations(
        tmp_path / "t1",
        [{**row, "outputs": [f"no {row['id']}", f"answer {row['id']}"]} for row in first],
    )
    second = lines(
        mt_bench(
            MtBenchConfig(
                step="second", questions=questions, first=turn1, sample=1, output_dir=out
            ),
            now=0.0,
        )
    )
    assert second[0] == {
        "id": "81",
        "prompt": [
            *user("Write a haiku."),
            {"role": "assistant", "content": "answer 81"},
            *user("Now without a verb."),
        ],
    }
    turn2 = generations(
        tmp_path / "t2", [{**row, "outputs": [f"then {row['id']}"]} for row in second]
    )
    config = MtBenchConfig(
        step="answers",
        questions=questions,
        first=turn1,
        second=turn2,
        sample=1,
        model_id="gdpo",
        output_dir=out,
    )
    path = mt_bench(config, now=1700000000.5)
    # FastChat takes the model's name from the file's.
    assert path == tmp_path / "mt" / "model_answer" / "gdpo.jsonl"
    assert lines(path) == [
        {
            "question_id": number,
            "answer_id": f"gdpo-{number}",
            "model_id": "gdpo",
            "choices": [{"index": 0, "turns": [f"answer {number}", f"then {number}"]}],
            "tstamp": 1700000000.5,
        }
        for number in (81, 101)
    ]
    # Another response of the first turn is not what the second turn answered to.
    with pytest.raises(UserError, match="question 81 was asked in other words"):
        mt_bench(config.model_copy(update={"sample": 0}), now=0.0)


def test_mt_bench_wants_every_question_answered(tmp_path: Path, questions: str) -> None:
    row = {"id": "81", "prompt": user("Write a haiku."), "outputs": ["ok"]}
    turn1 = generations(tmp_path / "t1", [row])
    config = MtBenchConfig(
        step="second", questions=questions, first=turn1, output_dir=str(tmp_path)
    )
    with pytest.raises(UserError, match="question 101: has no answer"):
        mt_bench(config, now=0.0)
    with pytest.raises(UserError, match="model_id: a/b cannot be a file's name"):
        mt_bench(
            config.model_copy(update={"step": "answers", "second": turn1, "model_id": "a/b"}),
            now=0.0,
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"turns": ["a", "b"]}', "question_id is missing"),
        ('{"question_id": 1, "turns": ["a"]}', "turns must be 2 texts"),
        ('{"question_id": 1, "turns": ["a", "b"]}\n' * 2, "line 2: question_id 1 stands twice"),
        ("", "is empty"),
        ('{"question_id": 1, "turns": ["a", "\\ud83d"]}', r"line 1: turns\[1\] holds half of a"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_questions_with_line_separators(tmp_path: Path) -> None:
    question = {"question_id": 1, "turns": ["a\u2028b", "c\u0085d"]}
    text = json.dumps(question, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_text(f"\ufeff{text}\r\n", encoding="utf-8", newline="")
    assert read_questions(tmp_path / "q.jsonl") == {"1": question}


def test_command_line(tmp_path: Path, answered: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.json"
    arguments = [f"generations={answered}", "generator=g", f"output={out}"]
    assert cli.main(["evaluate", "alpaca-eval", *arguments]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    assert len(json.loads(out.read_text())) == 2
    assert cli.main(["evaluate", "alpaca-eval", *arguments, "generater=g"]) == 2
    assert "generater: is not a key" in (error := capsys.readouterr().err)
    assert "did you mean generator" in error
