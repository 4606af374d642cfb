"""Every column format and preset, on small files of the shape they are published in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.data import ReadStats, read_pairs
from nemo_gdpo.errors import UserError

Write = Callable[..., Path]
HI = [{"role": "user", "content": "hi"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def only(path: Path, **arguments: Any) -> Any:
    (pair,) = read_pairs(path, **arguments)
    return pair


def test_trl_text(write_jsonl: Write) -> None:
    pair = only(write_jsonl([{"prompt": "p", "chosen": " a", "rejected": " b", "source": "x"}]))
    assert (pair.id, pair.prompt, pair.chosen, pair.rejected) == ("1", "p", " a", " b")
    assert (pair.chosen_score, pair.rejected_score) == (None, None)
    assert pair.meta == {"source": "x"}


def test_trl_messages_and_scores(write_jsonl: Write) -> None:
    row = {"id": "q7", "prompt": HI, "chosen": said("a"), "rejected": said("b")}
    pair = only(write_jsonl([{**row, "chosen_score": 4, "rejected_score": 1.5}]))
    assert (pair.id, pair.prompt, pair.chosen, pair.rejected) == ("q7", HI, said("a"), said("b"))
    assert (pair.chosen_score, pair.rejected_score) == (4.0, 1.5)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (None, HI + said("a"), HI + said("b")),  # implicit
        (HI, HI + said("a"), HI + said("b")),  # repeated in the responses
        ("hi", HI + said("a"), HI + said("b")),  # as text, too
        ("hi", said("a"), said("b")),  # text prompt, message responses
        (HI, "a", "b"),  # message prompt, text responses
    ],
)
def test_trl_mixtures_give_one_shape(
    write_jsonl: Write, prompt: Any, chosen: Any, rejected: Any
) -> None:
    pair = only(write_jsonl([{"prompt": prompt, "chosen": chosen, "rejected": rejected}]))
    assert (pair.prompt, pair.chosen, pair.rejected) == (HI, said("a"), said("b"))


def test_trl_implicit_text_prompt_keeps_words_whole(write_jsonl: Write) -> None:
    pair = only(
        write_jsonl([{"chosen": "Is it good? Yes it is", "rejected": "Is it good? Yesn't"}])
    )
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Is it good? ", "Yes it is", "Yesn't")


def test_trl_margin_becomes_scores(write_jsonl: Write) -> None:
    base = {"prompt": "p", "chosen": "a", "rejected": "b"}
    pair = only(write_jsonl([{**base, "margin": 0.75}]), require_scores=True)
    assert (pair.chosen_score, pair.rejected_score) == (0.75, 0.0)
    with pytest.raises(UserError, match=r"line 1: margin is -0\.5"):
        only(write_jsonl([{**base, "margin": -0.5}]))
    both = {**base, "chosen_score": 3, "rejected_score": 1}
    assert only(write_jsonl([{**both, "margin": 2}])).chosen_score == 3
    with pytest.raises(UserError, match=r"margin 1 contradicts"):
        only(write_jsonl([{**both, "margin": 1}]))


def test_nemo_aligner(write_jsonl: Write) -> None:
    text = {"prompt": "<extra_id_1>User\nq\n", "chosen_response": "a", "rejected_response": "b"}
    pair = only(write_jsonl([{**text, "chosen_reward": 2.0, "rejected_reward": -1.0}]))
    assert (pair.prompt, pair.chosen, pair.rejected) == ("<extra_id_1>User\nq\n", "a", "b")
    assert (pair.chosen_score, pair.rejected_score) == (2.0, -1.0)
    chat = {"prompt": HI, "chosen_response": said("a")[0], "rejected_response": said("b")[0]}
    pair = only(write_jsonl([chat]))
    assert (pair.prompt, pair.chosen, pair.rejected) == (HI, said("a"), said("b"))


def test_nemo_rl_lower_rank_is_preferred(write_jsonl: Write) -> None:
    completions = [{"rank": 1, "completion": said("bad")}, {"rank": 0, "completion": said("good")}]
    pair = only(write_jsonl([{"context": HI, "completions": completions, "task_name": "t"}]))
    assert (pair.prompt, pair.chosen, pair.rejected) == (HI, said("good"), said("bad"))
    assert (pair.chosen_score, pair.meta) == (None, {"task_name": "t"})


def test_nemo_rl_refuses_ties_and_crowds(write_jsonl: Write) -> None:
    one = {"rank": 0, "completion": said("a")}
    with pytest.raises(UserError, match="line 1: tied ranks"):
        only(write_jsonl([{"context": HI, "completions": [one, {**one, "completion": said("b")}]}]))
    with pytest.raises(UserError, match="exactly two"):
        only(write_jsonl([{"context": HI, "completions": [one]}]))
    with pytest.raises(UserError, match=r"completions\[0\] needs the keys rank"):
        only(write_jsonl([{"context": HI, "completions": [{"rank": 0}, one]}]))


def test_anthropic_hh_transcripts(write_jsonl: Write) -> None:
    head = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: tell me\nmore\n\nAssistant:"
    pair = only(write_jsonl([{"chosen": head + " yes", "rejected": head + " no"}]))
    turns = [*HI, *said("hello"), {"role": "user", "content": "tell me\nmore"}]
    assert (pair.prompt, pair.chosen, pair.rejected) == (turns, said("yes"), said("no"))


def test_anthropic_hh_processed_variant(write_jsonl: Write) -> None:
    row = {
        "context": [{"role": "human", "text": " hi"}],
        "chosen": {"role": "assistant", "text": " yes"},
        "rejected": {"role": "assistant", "text": " no"},
    }
    pair = only(write_jsonl([row]))
    assert (pair.prompt, pair.chosen, pair.rejected) == (HI, said("yes"), said("no"))


def test_anthropic_hh_that_diverges_early(write_jsonl: Write) -> None:
    good = "\n\nHuman: hi\n\nAssistant: "
    rows = [
        {"chosen": good + "yes", "rejected": "\n\nHuman: ho\n\nAssistant: no"},
        {"chosen": good + "yes", "rejected": good + "no"},
    ]
    with pytest.raises(UserError, match=r"line 1: the transcripts differ before the last turn"):
        list(read_pairs(write_jsonl(rows)))
    stats = ReadStats()
    (pair,) = read_pairs(write_jsonl(rows), on_bad_pair="drop", stats=stats)
    assert pair.chosen == said("yes")
    assert stats.bad_dropped == {"the transcripts differ before the last turn": 1}
    with pytest.raises(UserError, match="not a transcript"):
        list(read_pairs(write_jsonl([{"chosen": "a", "rejected": "b"}]), format="anthropic_hh"))


def test_ultrafeedback_binarized(write_jsonl: Write) -> None:
    row = {
        "prompt": "hi",
        "prompt_id": "77",
        "chosen": HI + said("a"),
        "rejected": HI + said("b"),
        "messages": HI + said("a"),
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }
    pair = only(write_jsonl([row]), require_scores=True)
    assert (pair.prompt, pair.chosen, pair.rejected) == (HI, said("a"), said("b"))
    assert (pair.chosen_score, pair.rejected_score, pair.meta) == (8.5, 6.0, {"prompt_id": "77"})


def test_tldr_comparisons_move_the_marker_to_the_prompt(write_jsonl: Write) -> None:
    row = {"prompt": "POST: long\n", "chosen": "TL;DR: short", "rejected": "TL;DR:  dull"}
    pair = only(write_jsonl([row]), format="tldr_comparisons")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("POST: long\nTL;DR:", " short", " dull")


def test_odpo_rows_pair_the_first_two_of_a_prompt(write_jsonl: Write) -> None:
    rows = [
        {"prompt": "I saw", "text": "it.", "reward": 0.25},
        {"prompt": "We saw", "text": "a", "reward": 1.5},
        {"prompt": "I saw", "text": "them.", "reward": 1.75},
        {"prompt": "I saw", "text": "never used", "reward": 2.0},
        {"prompt": "We saw", "text": " b", "reward": 1.5},
    ]
    stats = ReadStats()
    (pair,) = read_pairs(write_jsonl(rows), require_scores=True, stats=stats)
    # A space separates prompt and response: the file has none.
    assert (pair.prompt, pair.chosen, pair.rejected) == ("I saw", " them.", " it.")
    assert (pair.chosen_score, pair.rejected_score) == (1.75, 0.25)
    assert stats.ties_dropped == 1


def test_odpo_tldr_pairs_come_once(tmp_path: Path) -> None:
    path = tmp_path / "tldr.json"
    posts = {
        "post one": {"responses": ["w", "x", "y", "z"], "rewards": [5, 5, 1, 7]},
        "post two": {"responses": ["u", "v"], "rewards": [2, 3]},
    }
    path.write_text(json.dumps(posts, indent=1))
    stats = ReadStats()
    pairs = list(read_pairs(path, format="odpo_json", require_scores=True, stats=stats))
    got = {(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}
    one, two = "post one\n\nTL;DR:", "post two\n\nTL;DR:"
    expected = {(one, " w", " y"), (one, " z", " w"), (one, " x", " y"), (one, " z", " x")}
    assert got == expected | {(one, " z", " y"), (two, " v", " u")}
    assert len(pairs) == 6
    assert stats.ties_dropped == 1
    assert all(pair.chosen_score > pair.rejected_score for pair in pairs)


@pytest.mark.parametrize(
    ("posts", "message"),
    [
        ({"p": {"responses": ["a", "b"], "rewards": [1]}}, "post 1: 2 responses but 1 rewards"),
        ({"p": {"responses": ["a", "b"], "rewards": [1, "2"]}}, "post 1: 'rewards' is text"),
        ({"p": {"responses": ["a"]}}, "post 1: needs lists"),
    ],
)
def test_odpo_tldr_mistakes(tmp_path: Path, posts: Any, message: str) -> None:
    path = tmp_path / "tldr.json"
    path.write_text(json.dumps(posts))
    with pytest.raises(UserError, match=message):
        list(read_pairs(path, format="odpo_json"))


def test_odpo_row_without_a_partner(write_jsonl: Write) -> None:
    path = write_jsonl([{"prompt": "p", "text": "a", "reward": 1.0}])
    with pytest.raises(UserError, match=r"line 1: the prompt has only this response"):
        list(read_pairs(path, format="odpo_json"))


def test_unknown_columns_and_formats(write_jsonl: Write) -> None:
    path = write_jsonl([{"question": "q", "answer": "a"}])
    with pytest.raises(
        UserError, match=r"line 1: no known format has the columns answer, question"
    ):
        list(read_pairs(path))
    with pytest.raises(UserError, match=r"line 1: no value for 'context'"):
        list(read_pairs(path, format="nemo_rl"))
    with pytest.raises(UserError, match=r"data\.format='csv' is unknown"):
        list(read_pairs(path, format="csv"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": said("b")}, "one response is text"),
        ({"prompt": HI, "chosen": said("a"), "rejected": [{"role": "user"}]}, "exactly role and"),
        ({"prompt": HI, "chosen": said("a"), "rejected": [*said("b"), *HI]}, "not one assistant"),
        ({"prompt": said("x"), "chosen": "a", "rejected": "b"}, "ends with an assistant message"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt is a number, not a list"),
        ({"prompt": "zz", "chosen": HI + said("a"), "rejected": HI + said("b")}, "not among the"),
        ({"chosen": "a b", "rejected": "b a"}, "share no beginning"),
        ({"chosen": said("a"), "rejected": said("b")}, "share no first message"),
        ({"prompt": "p", "chosen": 1, "rejected": 2}, "chosen is a number"),
    ],
)
def test_malformed_rows_name_the_line(write_jsonl: Write, row: Any, message: str) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match=rf"pairs\.jsonl, line 2.*{message}"):
        list(read_pairs(write_jsonl([good, row])))
