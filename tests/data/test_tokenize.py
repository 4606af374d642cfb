"""Truncation: what is cut, what is kept, what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_gdpo.data import Limits, PairEncoder, RawPair, TokenizeStats, tokenize_pairs
from nemo_gdpo.errors import UserError

LONG = "a b c d e f a b c d e f a b c d e f"


def pair(prompt: Any, chosen: str, rejected: str, name: str = "1", **scores: float) -> RawPair:
    return RawPair(name, prompt, chosen, rejected, where=f"f.jsonl, line {name}", **scores)


def run(
    tokenizer: Any, pairs: list[RawPair], limits: Limits, **arguments: Any
) -> tuple[list[Any], TokenizeStats]:
    stats = TokenizeStats()
    encoder = PairEncoder(tokenizer)
    return list(tokenize_pairs(pairs, encoder, limits, stats=stats, **arguments)), stats


def test_without_limits_nothing_is_cut(llama3: Any) -> None:
    (got,), stats = run(llama3, [pair(LONG, " good", " bad", chosen_score=2.0)], Limits())
    assert got.chosen.complete and got.rejected.complete
    assert got.chosen.ids[-1] == got.rejected.ids[-1] == stats.end_token_id == llama3.eos_token_id
    assert (got.chosen_score, got.rejected_score) == (2.0, None)
    assert (stats.pairs, stats.prompts_cut, stats.responses_cut) == (1, 0, 0)
    assert stats.prompt_tokens == len(got.prompt_ids)
    assert stats.response_tokens == len(got.chosen.ids) + len(got.rejected.ids)


def test_a_response_is_cut_at_max_length_and_loses_its_end_token(llama3: Any) -> None:
    (whole,), _ = run(llama3, [pair("It is", " good" + LONG, " bad")], Limits())
    total = len(whole.prompt_ids) + len(whole.chosen.ids)
    # One token less already costs the end token; far less costs more, and never everything.
    for length in (total - 1, total - 5, len(whole.prompt_ids) + 1):
        (got,), stats = run(
            llama3, [pair("It is", " good" + LONG, " bad")], Limits(max_length=length)
        )
        kept = length - len(whole.prompt_ids)
        assert got.chosen.ids == whole.chosen.ids[:kept]
        assert got.chosen.complete is False
        assert llama3.eos_token_id not in got.chosen.ids
        assert len(got.rejected.ids) >= 1
        cut = 1 + (len(whole.rejected.ids) > kept)
        assert (stats.responses_cut, stats.prompts_cut) == (cut, 0)
        assert got.rejected.complete is (cut == 1)
    (got,), stats = run(llama3, [pair("It is", " good" + LONG, " bad")], Limits(max_length=total))
    assert got == whole and stats.responses_cut == 0


def test_a_long_prompt_keeps_bos_and_its_end(llama3: Any) -> None:
    (whole,), _ = run(llama3, [pair(LONG, " good", " bad")], Limits())
    (got,), stats = run(llama3, [pair(LONG, " good", " bad")], Limits(max_prompt_length=6))
    assert got.prompt_ids == (llama3.bos_token_id, *whole.prompt_ids[-5:])
    assert (got.chosen, stats.prompts_cut) == (whole.chosen, 1)
    (got,), _ = run(
        llama3, [pair(LONG, " good", " bad")], Limits(max_prompt_length=6, mode="keep_start")
    )
    assert got.prompt_ids == whole.prompt_ids[:6]


def test_keep_end_without_a_bos(smollm2: Any) -> None:
    (whole,), _ = run(smollm2, [pair(LONG, " good", " bad")], Limits())
    (got,), _ = run(smollm2, [pair(LONG, " good", " bad")], Limits(max_prompt_length=6))
    assert got.prompt_ids == whole.prompt_ids[-6:]


def test_error_mode_and_keep_start_on_a_conversation(llama3: Any) -> None:
    chat = RawPair(
        "9",
        [{"role": "user", "content": LONG}],
        [{"role": "assistant", "content": "good"}],
        [{"role": "assistant", "content": "bad"}],
        where="f.jsonl, line 9",
    )
    with pytest.raises(UserError, match=r"line 9, pair '9': data\.truncation_mode=keep_start"):
        run(llama3, [chat], Limits(max_prompt_length=6, mode="keep_start"))
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens, more than data\.max_prompt"):
        run(llama3, [chat], Limits(max_prompt_length=6, mode="error"))
    with pytest.raises(UserError, match=r"tokens more than data\.max_length=20"):
        long = pair("It", LONG + LONG, " bad")
        run(llama3, [long], Limits(max_length=20, mode="error"))


def test_a_prompt_that_fills_max_length(llama3: Any) -> None:
    with pytest.raises(UserError, match=r"line 1.*fills data\.max_length=8; set data\.max_prompt"):
        run(llama3, [pair(LONG, " good", " bad")], Limits(max_length=8))


def test_pairs_that_become_identical_are_dropped_and_counted(llama3: Any) -> None:
    same = pair("It", " a b c d e f good", " a b c d e f bad")
    other = pair("It", " good", " bad", "2")
    got, stats = run(llama3, [same, other], Limits(max_length=8))
    assert [item.id for item in got] == ["2"]
    assert (stats.identical_after_cut, stats.pairs) == (1, 1)


def test_bad_pairs_found_late(llama3: Any) -> None:
    bad = pair("It", " <|eot_id|>", " bad")
    other = pair("It", " good", " bad", "2")
    with pytest.raises(UserError, match=r"line 1.*special token.*data\.on_bad_pair=drop"):
        run(llama3, [bad, other], Limits())
    got, stats = run(llama3, [bad, other], Limits(), on_bad_pair="drop")
    assert [item.id for item in got] == ["2"]
    assert stats.bad_dropped == {"special token in the text": 1}


def test_two_end_tokens_in_one_data_set(llama3: Any) -> None:
    chat = RawPair(
        "2",
        [{"role": "user", "content": "a"}],
        [{"role": "assistant", "content": "b"}],
        [{"role": "assistant", "content": "c"}],
    )
    with pytest.raises(UserError, match="pair '2': text and messages end in different tokens"):
        run(llama3, [pair("a", " b", " c"), chat], Limits())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "middle"}, r"data\.truncation_mode='middle' is unknown"),
        ({"max_prompt_length": 1}, r"data\.max_prompt_length=1: it must be at least 2"),
        ({"max_length": 2}, r"data\.max_length=2: it must be at least 3"),
        ({"max_length": 8, "max_prompt_length": 8}, "leaves no room for a response"),
    ],
)
def test_limits_that_cannot_be_kept(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Limits(**arguments)
