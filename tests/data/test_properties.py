"""What holds of any input: readers refuse or read, formats keep every text, tokens spell it.

The malformed files of `test_a_thousand_malformed_files` are drawn from one seed: a failure can be
repeated.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_gdpo.data import Limits, PairEncoder, RawPair, ReadStats, read_pairs, tokenize_pairs
from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.readers import FORMAT_NAMES
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.prompts import read_prompts
from nemo_gdpo.io.jsonl import read_objects, text_lines
from nemo_gdpo.io.text import half_characters, is_text, whole_characters
from tests.support.models import llama3_tokenizer
from tests.support.tokenizers import sentencepiece_tokenizer

QUICK = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
"""Any text that UTF-8 can hold: control characters, U+2028 and unassigned ones among it."""
WILD = st.text(max_size=12)
"""The same with halves of characters."""
SAID = TEXT.filter(lambda text: bool(text.strip()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WILD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WILD, inner, max_size=3),
    max_leaves=8,
)


# -- text ------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=60)
@given(JSON)
def test_whole_characters_can_be_written(value: Any) -> None:
    whole = whole_characters(value)
    json.dumps(whole, ensure_ascii=False).encode()
    assert list(half_characters(whole)) == []
    if not list(half_characters(value)):
        assert repr(whole) == repr(value)


@QUICK
@given(WILD)
def test_a_text_is_one_that_utf8_can_hold(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        assert not is_text(text)
    else:
        assert is_text(text)


# -- lines -----------------------------------------------------------------------------------------


@QUICK
@given(rows=st.lists(st.dictionaries(TEXT, TEXT | st.integers(), max_size=3), min_size=1), ends=...)
def test_objects_come_back_as_they_were_written(
    tmp_path: Path, rows: list[dict[str, Any]], ends: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=ends) for row in rows]
    path.write_bytes(("\r\n" if ends else "\n").join(lines).encode())
    assert [found for _, _, found in read_objects(path)] == rows
    array = tmp_path / "rows.json"
    array.write_bytes(f"[{', '.join(lines)}]".encode())
    assert [found for _, _, found in read_objects(array)] == rows


@QUICK
@given(st.lists(TEXT.map(lambda text: text.replace("\n", "").rstrip("\r")), min_size=1))
def test_text_lines_end_in_line_feeds_only(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    lines[0] = lines[0].removeprefix("\ufeff")
    assert text_lines(path) == lines


# -- formats ---------------------------------------------------------------------------------------


def _as_trl(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _as_messages(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "human", "content": prompt}],
        "chosen": [{"role": "gpt", "content": chosen}],
        "rejected": [{"role": "gpt", "content": rejected}],
    }


def _as_conversations(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    first = {"role": "user", "content": prompt}
    return {
        "chosen": [first, {"role": "assistant", "content": chosen}],
        "rejected": [first, {"role": "assistant", "content": rejected}],
    }


def _as_nemo_aligner(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen_response": chosen, "rejected_response": rejected}


def _as_nemo_rl(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    answers = [
        {"rank": rank, "completion": [{"role": "assistant", "content": text}]}
        for rank, text in ((3, rejected), (1, chosen))
    ]
    return {"context": [{"role": "user", "content": prompt}], "completions": answers}


SHAPES = (_as_trl, _as_messages, _as_conversations, _as_nemo_aligner, _as_nemo_rl)


def _text_of(part: Any) -> str:
    return part if isinstance(part, str) else str(part[-1]["content"])


@QUICK
@given(prompt=SAID, chosen=SAID, rejected=SAID, shape=st.sampled_from(SHAPES))
def test_every_format_keeps_every_text(
    tmp_path: Path,
    prompt: str,
    chosen: str,
    rejected: str,
    shape: Callable[[str, str, str], dict[str, Any]],
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(shape(prompt, chosen, rejected)) + "\n")
    try:
        (pair,) = read_pairs(path)
    except UserError as error:
        text = str(error)
        assert "\n" not in text
        # The only texts that a format may refuse.
        assert "identical chosen" in text or "the responses contain the prompt" in text
        assert chosen == rejected or prompt.strip() in chosen
        return
    assert (_text_of(pair.prompt), _text_of(pair.chosen), _text_of(pair.rejected)) == (
        prompt,
        chosen,
        rejected,
    )


# -- tokens ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return llama3_tokenizer()


@pytest.fixture(scope="module")
def spaced() -> Any:
    return sentencepiece_tokenizer()


@QUICK
@given(prompt=SAID, chosen=SAID, rejected=SAID)
def test_tokens_of_text_pairs_spell_the_joined_text(
    byte_level: Any, spaced: Any, prompt: str, chosen: str, rejected: str
) -> None:
    for tokenizer in (byte_level, spaced):
        encoder = PairEncoder(tokenizer)
        try:
            ids, good, bad = encoder.encode_pair(RawPair("1", prompt, chosen, rejected))
        except BadPairError:
            continue
        for taught, text in ((good, chosen), (bad, rejected)):
            assert taught[-1] == tokenizer.eos_token_id
            whole = tokenizer(prompt + text).input_ids
            spelled = tokenizer.decode([*ids, *taught[:-1]], skip_special_tokens=True)
            assert spelled == tokenizer.decode(whole, skip_special_tokens=True)


@QUICK
@given(
    turns=st.lists(SAID, min_size=1, max_size=3),
    system=st.none() | TEXT,
    chosen=SAID,
    rejected=SAID,
    limits=st.tuples(st.none() | st.integers(2, 40), st.none() | st.integers(41, 60)),
)
def test_conversations_keep_their_promises(
    byte_level: Any,
    turns: list[str],
    system: str | None,
    chosen: str,
    rejected: str,
    limits: tuple[int | None, int | None],
) -> None:
    prompt = [] if system is None else [{"role": "system", "content": system}]
    for number, text in enumerate(turns):
        prompt += [{"role": "assistant", "content": "ok"}] if number else []
        prompt += [{"role": "user", "content": text}]
    said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    encoder = PairEncoder(byte_level)
    problems: list[str] = []
    pair = RawPair("1", prompt, *said, where="f, line 1")
    found = list(tokenize_pairs([pair], encoder, Limits(*limits), problems=problems))
    assert all(problem.startswith("f, line 1") and "\n" not in problem for problem in problems)
    for tokens in found:
        end = encoder.chat_end_token_id
        assert tokens.prompt_ids[0] == byte_level.bos_token_id
        for response in (tokens.chosen, tokens.rejected):
            assert response.complete == (response.ids[-1] == end)
            assert response.ids.count(end) == response.complete
            whole = len(tokens.prompt_ids) + len(response.ids)
            assert whole <= (limits[1] or whole)


# -- malformed files -------------------------------------------------------------------------------

COLUMNS = (
    "prompt", "chosen", "rejected", "chosen_score", "rejected_score", "margin", "id", "question",
    "context", "completions", "chosen_response", "rejected_response", "text", "reward", "messages",
    "score_chosen", "score_rejected", "tools", "images", "system", "role", "content", "rank",
    "completion", "responses", "rewards",
)  # fmt: skip
SCRAPS = (
    "", " ", "a", "p q", "\ud83d", "\u2028", "\x00", "\ufeff", "\n\nHuman: a\n\nAssistant: b",
    "TL;DR: x", None, True, 0, -1, 1.5, 1e400, float("nan"), -float("inf"), 10**400, [], {}, [[]],
    [{}], [None], [{"role": "user", "content": "a"}], [{"role": "user", "content": None}],
    [{"role": "assistant", "content": "a"}], [{"from": "human", "value": "a"}],
    [{"role": 1, "content": "a"}], {"role": "assistant", "text": "b"},
    [{"rank": 0, "completion": "a"}, {"rank": 1, "completion": "b"}],
    [{"rank": None, "completion": "a"}, {"rank": 1, "completion": []}],
)  # fmt: skip
_GOOD = (
    {"prompt": "p", "chosen": " a", "rejected": " b"},
    {"prompt": SCRAPS[24], "chosen": SCRAPS[26], "rejected": [{"role": "gpt", "content": "c"}]},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"context": SCRAPS[24], "completions": SCRAPS[30]},
    {"prompt": "p", "text": "a", "reward": 1.0},
    {"id": "x", "prompt": "p"},
)


def _line(draw: random.Random) -> bytes:
    """One line: a row with something wrong in it, a torn one, or no row at all."""
    row: dict[str, Any] = dict(draw.choice(_GOOD))
    for _ in range(draw.randint(0, 3)):
        row[draw.choice(COLUMNS)] = draw.choice(SCRAPS)
    if draw.random() < 0.2:
        row.pop(draw.choice(list(row)))
    if draw.random() < 0.1:
        row |= {key: f"{value} \ud83d" for key, value in row.items() if isinstance(value, str)}
    text = json.dumps(row).encode()
    kind = draw.random()
    if kind < 0.7:
        return text
    if kind < 0.8:  # torn
        return text[: draw.randrange(len(text))]
    if kind < 0.9:  # a byte of it is another
        place = draw.randrange(len(text))
        return text[:place] + bytes([draw.randrange(256)]) + text[place + 1 :]
    return draw.choice(
        [
            b"", b"[]", b"[1", b"null", b"{}", b'"a"', b"\xff", b"{" * 3000, b"[" * 100_000,
            b'{"a":' * 5000, b"1" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}",
            b'{"prompt": 1, "prompt": 2}', b"\x1f\x8b\x08", "{}".encode("utf-16"), b"NaN", b"{} {}",
            b'{"\\ud83d": 1}', b"\x00", b"\xe2\x80\xa8",
        ]
    )  # fmt: skip


def _file(draw: random.Random) -> bytes:
    ends = draw.choice([b"\n", b"\n", b"\r\n", b"\r", "\u2028".encode()])
    lines = ends.join(_line(draw) for _ in range(draw.randint(1, 4)))
    return (
        draw.choice([b"", b"", b"", b"\xef\xbb\xbf", b"[", b"\n"])
        + lines
        + draw.choice([b"", ends])
    )


def _one_line(error: UserError) -> None:
    assert "\n" not in str(error)
    str(error).encode("utf-8", "backslashreplace")


def test_a_thousand_malformed_files(tmp_path: Path, byte_level: Any) -> None:
    """Read, or refused in one line, in every format, as pairs and as prompts."""
    draw = random.Random(1815)
    encoder = PairEncoder(byte_level)
    path = tmp_path / "pairs.jsonl"
    refused = read = 0
    for number in range(1000):
        path = tmp_path / draw.choice(["pairs.jsonl", "pairs.jsonl", "pairs.json", "pairs.parquet"])
        content = _file(draw)
        path.write_bytes(content)
        drop = draw.choice(["error", "drop"])
        problems: list[str] | None = draw.choice([None, []])
        try:
            pairs = read_pairs(
                path,
                format=draw.choice(FORMAT_NAMES) if number % 2 else "auto",
                require_scores=draw.random() < 0.3,
                on_bad_pair=drop,
                stats=ReadStats(),
                problems=problems,
            )
            found = list(tokenize_pairs(pairs, encoder, Limits(20, 40), on_bad_pair=drop))
            read += bool(found)
        except UserError as error:
            _one_line(error)
            refused += 1
        if path.suffix != ".parquet":
            try:
                read_prompts(path)
            except UserError as error:
                _one_line(error)
        assert path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "pairs.json", "pairs.jsonl", "pairs.parquet",
    ]  # fmt: skip
    assert refused > 500  # most of them are malformed
    assert read > 30  # and some of them are not
