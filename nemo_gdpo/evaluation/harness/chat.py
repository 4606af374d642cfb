"""Files for the two chat benchmarks: AlpacaEval's model outputs, MT-Bench's answers.

Both benchmarks judge elsewhere, with a judge that costs money; here are the files they read, made
from what `nemo-gdpo generate` wrote. MT-Bench has two turns. The second needs the first's answer,
so sampling happens twice: the prompts of a turn are written here, `nemo-gdpo generate` answers
them, and what it wrote makes the next prompts or the answer file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_gdpo.config.downstream import AlpacaEvalConfig, MtBenchConfig, PointConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.rows import Generations, read_run
from nemo_gdpo.generation.rows import Row
from nemo_gdpo.io.files import write_output
from nemo_gdpo.io.jsonl import read_objects
from nemo_gdpo.io.text import half_characters

TURNS = 2


def chosen_rows(generations: Generations, wanted: PointConfig, sample: int) -> dict[str, Row]:
    """Prompt id -> row at one sampling point.

    Args:
        generations: of a run.
        wanted: what singles the point out.
        sample: every row must have so many responses and one more.

    Raises:
        UserError: no such point in the sweep, or several of them; too few responses.
    """
    given = {name: value for name, value in wanted.model_dump().items() if value is not None}
    fitting = [
        point
        for point in generations.points
        if all(asdict(point)[name] == value for name, value in given.items())
    ]
    if len(fitting) != 1:
        known = ", ".join(point.label() for point in generations.points)
        what = "no point" if not fitting else f"{len(fitting)} points"
        raise UserError(
            f"sampling: {what} of {generations.directory} (sampled at {known}) fit; single one "
            "out, as with sampling.temperature=0.7"
        )
    rows = generations.points[fitting[0]]
    for row in rows:
        if sample >= len(row.outputs):
            raise UserError(
                f"sample: {row.where} has {len(row.outputs)} responses; they count from 0"
            )
    return {row.id: row for row in rows}


def _require(value: str | None, key: str, what: str) -> str:
    if value is None:
        raise UserError(f"{key}: is not set; give {what}")
    return value


def _instruction(row: Row) -> str:
    """A prompt that is one instruction."""
    if isinstance(row.prompt, str):
        return row.prompt
    if len(row.prompt) != 1 or row.prompt[0]["role"] != "user":
        raise UserError(
            f"{row.where}: the prompt is a conversation, and AlpacaEval has single instructions "
            "without a system message"
        )
    return row.prompt[0]["content"]


# -- AlpacaEval ------------------------------------------------------------------------------------


def write_alpaca_eval(config: AlpacaEvalConfig) -> Path:
    """Write the JSON list that `alpaca_eval --model_outputs` reads; returns its path.

    AlpacaEval joins outputs to its reference by the instruction's exact text and silently leaves
    out what it cannot join: with `instructions` a difference is an error here.

    Raises:
        UserError: the generations do not fit.
    """
    directory = Path(_require(config.generations, "generations", "what nemo-gdpo generate wrote"))
    generator = _require(config.generator, "generator", "the model's name in the leaderboard")
    rows = chosen_rows(read_run(generator, directory), config.sampling, config.sample)
    outputs = {}
    for row in rows.values():
        instruction = _instruction(row)
        if instruction in outputs:
            raise UserError(f"{row.where}: the instruction stands in another row, too")
        outputs[instruction] = row.outputs[config.sample]
    if config.instructions is None:
        wanted = [{"instruction": text, "dataset": config.dataset} for text in outputs]
    else:
        wanted = read_instructions(Path(config.instructions))
        missing = [entry for entry in wanted if entry["instruction"] not in outputs]
        if missing:
            raise UserError(
                f"instructions: {len(missing)} of {len(wanted)} in {config.instructions} have no "
                f"answer in {directory}, first {missing[0]['instruction'][:60]!r}; sample them"
            )
    entries = [
        {
            "instruction": entry["instruction"],
            "output": outputs[entry["instruction"]],
            "generator": generator,
            "dataset": entry["dataset"],
        }
        for entry in wanted
    ]
    text = json.dumps(entries, ensure_ascii=False, indent=1) + "\n"
    return write_output(Path(config.output), text)


def read_instructions(path: Path) -> list[dict[str, str]]:
    """AlpacaEval's evaluation set: instruction and data set of each, in its order.

    Raises:
        UserError: it is not such a file.
    """
    try:
        plain = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"instructions: {path} cannot be read ({error})") from None
    if not isinstance(plain, list) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("instruction"), str)
        and isinstance(entry.get("dataset"), str)
        for entry in plain
    ):
        raise UserError(
            f"instructions: {path} is not a JSON list of objects with instruction, dataset"
        )
    for half in half_characters(plain):
        raise UserError(
            f"instructions: {path}: {half} holds half of a surrogate pair; write the whole one"
        )
    return [{"instruction": e["instruction"], "dataset": e["dataset"]} for e in plain]


# -- MT-Bench --------------------------------------------------------------------------------------


def read_questions(path: Path) -> dict[str, dict[str, Any]]:
    """FastChat's question.jsonl: id as text -> question.

    Raises:
        UserError: a line is not a question of two turns, or an id stands twice.
    """
    if not path.is_file():
        raise UserError(f"questions: {path} cannot be read (no such file)")
    questions: dict[str, dict[str, Any]] = {}
    for where, _, question in read_objects(path):
        for half in half_characters(question):
            raise UserError(f"{where}: {half} holds half of a surrogate pair; write the whole one")
        if type(question.get("question_id")) not in (int, str):
            raise UserError(f"{where}: question_id is missing")
        turns = question.get("turns")
        if (
            not isinstance(turns, list)
            or len(turns) != TURNS
            or not all(isinstance(turn, str) and turn for turn in turns)
        ):
            raise UserError(f"{where}: turns must be {TURNS} texts, as in MT-Bench")
        key = str(question["question_id"])
        if key in questions:
            raise UserError(f"{where}: question_id {key} stands twice")
        questions[key] = question
    if not questions:
        raise UserError(f"questions: {path} is empty")
    return questions


def first_turn(questions: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Prompts for `nemo-gdpo generate`: the first turn of every question."""
    return [
        {"id": key, "prompt": [{"role": "user", "content": question["turns"][0]}]}
        for key, question in questions.items()
    ]


def second_turn(
    questions: Mapping[str, Mapping[str, Any]], first: Mapping[str, Row], sample: int
) -> list[dict[str, Any]]:
    """Prompts for `nemo-gdpo generate`: first turn, the model's answer to it, second turn.

    Raises:
        UserError: a question was not answered, or another one was.
    """
    prompts = []
    for key, question in questions.items():
        row = _answer(first, key, first_turn({key: question})[0]["prompt"])
        messages = [
            {"role": "user", "content": question["turns"][0]},
            {"role": "assistant", "content": row.outputs[sample]},
            {"role": "user", "content": question["turns"][1]},
        ]
        prompts.append({"id": key, "prompt": messages})
    return prompts


def answers(
    questions: Mapping[str, Mapping[str, Any]],
    first: Mapping[str, Row],
    second: Mapping[str, Row],
    *,
    model_id: str,
    sample: int,
    tstamp: float,
) -> list[dict[str, Any]]:
    """Rows of FastChat's answer file, in the order of the questions.

    Args:
        questions: see `read_questions`.
        first, second: generations of the two turns.
        model_id: the model's name.
        sample: which response of the first turn the second was sampled after. The second turn has
            one response that counts, its first.
        tstamp: seconds since 1970.

    Raises:
        UserError: the second turn's conversations are not those of the first turn's answers.
    """
    prompts = {entry["id"]: entry["prompt"] for entry in second_turn(questions, first, sample)}
    rows = []
    for key, question in questions.items():
        then = _answer(second, key, prompts[key])
        rows.append(
            {
                "question_id": question["question_id"],
                "answer_id": f"{model_id}-{key}",
                "model_id": model_id,
                "choices": [{"index": 0, "turns": [first[key].outputs[sample], then.outputs[0]]}],
                "tstamp": tstamp,
            }
        )
    return rows


def _answer(rows: Mapping[str, Row], key: str, prompt: Sequence[Mapping[str, str]]) -> Row:
    row = rows.get(key)
    if row is None:
        raise UserError(f"question {key}: has no answer among the generations; sample it")
    if row.prompt != list(prompt):
        raise UserError(
            f"{row.where}: question {key} was asked in other words; sample the prompts that "
            "mt-bench wrote"
        )
    return row


def mt_bench(config: MtBenchConfig, *, now: float) -> Path:
    """Do one step; returns the file that it wrote.

    Raises:
        UserError: a setting is missing, or the files do not fit together.
    """
    questions = read_questions(Path(_require(config.questions, "questions", "FastChat's file")))
    output = Path(config.output_dir)
    if config.step == "first":
        return _write_lines(output / "first.jsonl", first_turn(questions))
    first = _turn(config.first, "first", config.sampling, config.sample)
    if config.step == "second":
        return _write_lines(output / "second.jsonl", second_turn(questions, first, config.sample))
    second = _turn(config.second, "second", config.sampling, 0)
    model_id = _require(config.model_id, "model_id", "the model's name")
    if "/" in model_id:
        raise UserError(f"model_id: {model_id} cannot be a file's name; leave out the slash")
    found = answers(questions, first, second, model_id=model_id, sample=config.sample, tstamp=now)
    return _write_lines(output / "model_answer" / f"{model_id}.jsonl", found)


def _turn(directory: str | None, key: str, sampling: PointConfig, sample: int) -> dict[str, Row]:
    path = Path(_require(directory, key, "the generations of that turn"))
    return chosen_rows(read_run(key, path), sampling, sample)


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write_output(path, text)
