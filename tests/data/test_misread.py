"""Data that is not what it seems: each thing that would be learned wrong without a word."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from nemo_gdpo.data import ReadStats, read_pairs
from nemo_gdpo.errors import UserError

Write = Callable[..., Path]
HI = [{"role": "user", "content": "hi"}]
GOOD = {"prompt": "Is it?", "chosen": " a", "rejected": " b"}
HALF = "\ud83d"


def said(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def chat(prompt: Any = HI, chosen: str = "a", rejected: str = "b", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": said(chosen), "rejected": said(rejected), **more}


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(read_pairs(path, **arguments))
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- 9: a prompt elsewhere -------------------------------------------------------------------------

OTHER_NAMES: list[tuple[dict[str, Any], str]] = [
    ({"question": "Why?"}, "question may hold it: name the column prompt"),
    ({"input": "Why?"}, "input may hold it"),
    ({"instruction": "Explain it"}, "instruction may hold it"),
    ({"Prompt": "Why?"}, "Prompt may hold it"),
    ({"Frage": "Warum ist das so?"}, "Frage may hold it"),
    ({"system": "Be brief.", "question": "Why?"}, "question, system may hold it between them"),
    ({"messages": HI}, "messages may hold it"),
    ({"conversations": [{"from": "human", "value": "hi"}]}, "conversations may hold it"),
    ({}, "ends in the middle of a sentence"),
    ({"source": "web"}, "ends in the middle of a sentence"),
    ({"prompt": None}, "no value for 'prompt' (the column is there and holds null)"),
]


@pytest.mark.parametrize(("columns", "message"), OTHER_NAMES)
def test_no_prompt_is_invented_from_what_responses_share(
    write_jsonl: Write, columns: dict[str, Any], message: str
) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green.", **columns}
    path = write_jsonl([GOOD, row])
    text = refusal(path)
    assert "line 2" in text and message in text


def test_a_message_prompt_under_another_name_is_named(write_jsonl: Write) -> None:
    row = {"question": "Why?", "chosen": said("a"), "rejected": said("b")}
    assert "question may hold it: name the column prompt" in refusal(write_jsonl([row]))


# -- 10: responses with the prompt in them ---------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "It is", "chosen": "It is good", "rejected": "It is bad"},
        {"prompt": "It is\n", "chosen": " It is\ngood", "rejected": "It is\nbad"},
        chat(
            said("What is two plus two?", "user"),
            "What is two plus two? 4",
            "What is two plus two? 5",
        ),
        {
            "prompt": said("What is two plus two?", "user"),
            "chosen": "User: What is two plus two?\nBot: 4",
            "rejected": "User: What is two plus two?\nBot: 5",
        },
        {
            "prompt": "What is two plus two?",
            "chosen": said("What is two plus two? 4"),
            "rejected": said("What is two plus two? 5"),
        },
    ],
)  # fmt: skip
def test_responses_that_contain_the_prompt(write_jsonl: Write, row: dict[str, Any]) -> None:
    path = write_jsonl([GOOD, row])
    text = refusal(path)
    assert "line 2, pair '2': the responses contain the prompt" in text
    stats = ReadStats()
    assert len(list(read_pairs(path, on_bad_pair="drop", stats=stats))) == 1
    assert stats.bad_dropped == {"the responses contain the prompt": 1}


@pytest.mark.parametrize(
    "row",
    [
        chat(said("Hello", "user"), "Hello! What now?", "Hello."),
        chat(said("Good morning", "user"), "Good morning!", "Good morning to you"),
        chat(said("What is two plus two?", "user"), "What is two plus two? 4", "It is 5"),
        {"prompt": "A", "chosen": "All of it", "rejected": "And none"},
    ],
)
def test_responses_that_only_resemble_the_prompt_stay(
    write_jsonl: Write, row: dict[str, Any]
) -> None:
    (pair,) = read_pairs(write_jsonl([row]))
    assert pair.prompt == row["prompt"]


# -- 11: columns that change the prompt ------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tools", [{"name": "search"}]),
        ("tools", '[{"name": "search"}]'),
        ("images", ["a.png"]),
        ("image", {"bytes": "x"}),
        ("system", "Answer in French."),
        ("system_prompt", "Answer in French."),
        ("System Prompt", "Answer in French."),
        ("documents", [{"title": "t", "text": "x"}]),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("input", "the text to shorten"),
        ("context", "a passage"),
        ("history", [{"role": "user", "content": "before"}]),
    ],
)
@pytest.mark.parametrize("row", [GOOD, chat()])
def test_a_column_that_changes_the_prompt_is_not_ignored(
    write_jsonl: Write, row: dict[str, Any], column: str, value: Any
) -> None:
    text = refusal(write_jsonl([{**row, column: value}]), on_bad_pair="drop")
    assert f"line 1, pair '1': column {column!r}" in text and "remove the column" in text


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": []},
        {"tools": "[]"},
        {"system": ""},
        {"system": None},
        {"images": None},
        {"question": "Is it?"},  # what the prompt says already
        {"source": "web", "category": "film", "task": "summarise"},
    ],
)
def test_columns_that_change_nothing_stay(write_jsonl: Write, columns: dict[str, Any]) -> None:
    (pair,) = read_pairs(write_jsonl([{**GOOD, **columns}]))
    assert pair.meta == {key: value for key, value in columns.items() if value is not None}


def test_a_system_column_that_the_messages_have(write_jsonl: Write) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *HI]
    (pair,) = read_pairs(write_jsonl([chat(turns, system="Be brief.")]))
    assert pair.prompt == turns


# -- 14: roles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "answer"),
    [("human", "gpt"), ("User", "Assistant"), ("USER", "bot"), ("prompter", "model")],
)
def test_roles_of_data_sets_are_translated(write_jsonl: Write, role: str, answer: str) -> None:
    row = {"prompt": said("hi", role), "chosen": said("a", answer), "rejected": said("b", answer)}
    (pair,) = read_pairs(write_jsonl([row]))
    assert (pair.prompt, pair.chosen, pair.rejected) == (HI, said("a"), said("b"))


@pytest.mark.parametrize("role", ["narrator", "", "assistant2", "developer"])
def test_unknown_roles_are_refused(write_jsonl: Write, role: str) -> None:
    path = write_jsonl([GOOD, chat([*said("x", role), *HI])])
    assert (
        f"line 2: unknown role (prompt[0] has {role!r}); use one of system, user, assistant, tool"
        in refusal(path)
    )


# -- 15: text that is no text ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({**GOOD, "chosen": HALF}, "chosen"),
        ({**GOOD, "prompt": f"a{HALF}b"}, "prompt"),
        ({**GOOD, "id": HALF}, "id"),
        ({**GOOD, "note": ["x", {"y": HALF}]}, r"note[1].y"),
        ({**GOOD, HALF: 1}, r"the key '\ud83d'"),
        (chat(chosen=HALF), "chosen[0].content"),
        (chat(said("\udc00", "user")), "prompt[0].content"),
    ],
)
def test_half_a_character_names_its_place_and_can_be_dropped(
    write_jsonl: Write, row: dict[str, Any], place: str
) -> None:
    for rows, count in (([row, GOOD], 1), ([GOOD, row], 2)):
        path = write_jsonl(rows)
        text = refusal(path)
        assert f"line {count}: text that is no text ({place} holds half of a surrogate" in text
        stats = ReadStats()
        assert len(list(read_pairs(path, on_bad_pair="drop", stats=stats))) == 1
        assert stats.bad_dropped == {"text that is no text": 1}


def test_whole_characters_pass(write_jsonl: Write) -> None:
    path = write_jsonl([json.dumps({**GOOD, "chosen": " \U0001f600\u2028é"})])
    assert "\\ud83d\\ude00" in path.read_text()  # as JSON spells it: a whole pair
    (pair,) = read_pairs(path)
    assert pair.chosen == " \U0001f600\u2028é"


def test_posts_with_half_a_character(tmp_path: Path) -> None:
    path = tmp_path / "posts.json"
    good = {"responses": ["a", "b"], "rewards": [1, 2]}
    path.write_text(json.dumps({"p": {"responses": [HALF, "b"], "rewards": [1, 2]}, "q": good}))
    assert "post 1: text that is no text" in refusal(path, format="odpo_json")
    assert len(list(read_pairs(path, format="odpo_json", on_bad_pair="drop"))) == 1


# -- 16: what can be dropped -----------------------------------------------------------------------

DROPPABLE: list[tuple[dict[str, Any], str]] = [
    (chat(said("", "user")), "empty prompt"),
    (chat(said(" \n", "user")), "empty prompt"),
    (chat([*HI, *said("x"), *said("\t", "user")]), "empty prompt"),
    ({**GOOD, "prompt": " \n"}, "empty prompt"),
    (chat([]), "prompt is an empty list"),
    ({**GOOD, "chosen": None}, "no value for 'chosen'"),
    ({**GOOD, "rejected": None}, "no value for 'rejected'"),
    ({**GOOD, "prompt": None}, "no value for 'prompt'"),
    ({**GOOD, "chosen_score": 1, "rejected_score": 2}, "inverted scores"),
    ({**GOOD, "margin": -1}, "inverted scores"),
    ({**GOOD, "chosen_score": float("nan"), "rejected_score": 2}, "a score that is not finite"),
    ({**GOOD, "chosen_score": 10**400, "rejected_score": 2}, "a score that is not finite"),
    ({**GOOD, "chosen_score": 1, "rejected_score": None}, "half of the scores"),
    (chat([*HI, *said("x")]), "the prompt ends with an assistant message"),
    (chat(said("x", "narrator")), "unknown role"),
]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("row", "reason"), DROPPABLE)
def test_pairs_that_cannot_be_learned_from_are_counted(
    write_jsonl: Write, row: dict[str, Any], reason: str, first: bool
) -> None:
    path = write_jsonl([row, GOOD, GOOD] if first else [GOOD, GOOD, row])
    text = refusal(path)
    assert f"line {1 if first else 3}" in text
    assert text.endswith("or set data.on_bad_pair=drop to drop and count such pairs")
    stats = ReadStats()
    kept = list(read_pairs(path, on_bad_pair="drop", stats=stats))
    assert [pair.prompt for pair in kept] == ["Is it?", "Is it?"]
    assert stats.bad_dropped == {reason: 1}


def test_a_null_response_is_called_null(write_jsonl: Write) -> None:
    text = refusal(write_jsonl([GOOD, {**GOOD, "chosen": None}]))
    assert "line 2: no value for 'chosen' (the column is there and holds null)" in text


def test_nulls_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    rows = [{**GOOD, "chosen": None}, GOOD]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert "row 1: no value for 'chosen'" in refusal(path)
    assert len(list(read_pairs(path, on_bad_pair="drop"))) == 1


def test_a_file_of_bad_pairs_only_says_why(write_jsonl: Write) -> None:
    rows = [{**GOOD, "chosen": ""}, {**GOOD, "chosen": ""}, {**GOOD, "rejected": " a"}]
    text = refusal(write_jsonl(rows), on_bad_pair="drop")
    assert "all 3 pairs were dropped (1 identical chosen and rejected, 2 empty response)" in text


# -- 18 and the like: files ------------------------------------------------------------------------


def test_a_json_array_is_read(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "prompt": "q"}]
    for indent in (None, 1):
        path = tmp_path / "pairs.json"
        path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(rows, indent=indent).encode())
        assert [(p.id, p.prompt) for p in read_pairs(path)] == [("1", "Is it?"), ("2", "q")]
    path.write_text(json.dumps([GOOD, 3, {**GOOD, "chosen": ""}]))
    assert "pairs.json, item 2: a JSON int, not an object" in refusal(path)
    path.write_text(json.dumps([GOOD, {**GOOD, "chosen": ""}]))
    assert "pairs.json, item 3" not in refusal(path) and "item 2" in refusal(path)
    path.write_text("[" + json.dumps(GOOD) + ",")
    assert "pairs.json: not valid JSON" in refusal(path)


def test_json_that_is_no_list_of_rows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"train": [GOOD]}, indent=1))
    assert "one JSON object over several lines (its keys: 'train')" in refusal(path)
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(json.dumps([GOOD]) + "\n")
    assert "line 1: a JSON list, not an object" in refusal(lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", gzip.compress(b"{}", mtime=0), "is compressed with gzip; decompress it"),
        ("p.jsonl.gz", gzip.compress(b"{}", mtime=0), "is compressed with gzip; decompress it"),
        ("p.jsonl", json.dumps(GOOD).encode("utf-16"), "is UTF-16, not UTF-8; save the file as"),
        ("p.jsonl", b"PAR1xxxx", "is a Parquet file; name it .parquet"),
        ("p.jsonl", b"PK\x03\x04xx", "is a zip archive; unpack it"),
        ("p.jsonl", b'{"a": 1, "a": 2}\n', "line 1: the key 'a' stands twice in one object"),
        ("p.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", "line 1: a number has too many digits"),
        ("p.jsonl", b"[" * 200_000 + b"\n", "line 1: JSON is nested too deeply"),
        ("p.parquet", json.dumps(GOOD).encode(), "not a readable Parquet file"),
    ],
)
def test_other_kinds_of_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_file_of_posts_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "posts.json"
    path.write_bytes(b'{"a":' * 100_000)
    assert "line 1: JSON is nested too deeply" in refusal(path, format="odpo_json")


def test_lines_end_in_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = json.dumps({**GOOD, "chosen": " a\u2028b\u0085c"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n{row}\r\n".encode())
    assert [pair.chosen for pair in read_pairs(path)] == [" a\u2028b\u0085c"] * 2


def test_a_very_long_line(write_jsonl: Write) -> None:
    (pair,) = read_pairs(write_jsonl([{**GOOD, "chosen": "a" * 5_000_000}]))
    assert len(pair.chosen) == 5_000_000


# -- all at once -----------------------------------------------------------------------------------


def test_all_problems_are_listed(write_jsonl: Write) -> None:
    rows = ["{", GOOD, {**GOOD, "chosen": ""}, [1], {**GOOD, "id": "x"}, {**GOOD, "id": "x"}, "{}"]
    problems: list[str] = []
    assert len(list(read_pairs(write_jsonl(rows), problems=problems))) == 2
    assert [problem.partition(".jsonl, ")[2].partition(":")[0] for problem in problems] == [
        "line 1",
        "line 3, pair '3'",
        "line 4",
        "line 6",
        "line 7",
    ]
    problems.clear()
    assert len(list(read_pairs(write_jsonl(rows), problems=problems, limit=2))) == 1
    assert len(problems) == 2
