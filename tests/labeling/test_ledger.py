"""The ledger: identity, budget, rounds, answers that come twice, replay."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.labeling.ledger import AskedNow, Ledger, Recorded
from nemo_gdpo.labeling.pairs import data_fingerprint, pair_key, shown
from nemo_gdpo.labeling.state import replay
from tests.labeling.ledgers import IDENTITY, begun, question, says

MORNING, NOON = "2026-01-01T08:00:00.000000+00:00", "2026-01-01T12:00:00.000000+00:00"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.sqlite"


def test_a_pairs_key_knows_no_order() -> None:
    assert pair_key("p", "a", "b") == pair_key("p", "b", "a") != pair_key("p", "a", "c")
    assert pair_key("p", "a", "b") != pair_key("q", "a", "b")
    assert pair_key("pa", "", "b") != pair_key("p", "a", "b")
    message = [{"role": "assistant", "content": "a"}]
    assert pair_key("p", message, "b") != pair_key("p", "a", "b")
    assert data_fingerprint(["x", "y", "x"]) == data_fingerprint(["y", "x"])


def test_the_order_is_drawn_by_the_seed_and_the_pair_alone() -> None:
    """Whichever response the data prefers: the order tells nothing of it. 200 of 400 in the mean,
    standard deviation 10."""
    orders = [shown(f"p{n}", "good", "bad", seed=3).left for n in range(400)]
    assert orders == [shown(f"p{n}", "bad", "good", seed=3).left for n in range(400)]
    assert 160 < orders.count("good") < 240
    assert orders != [shown(f"p{n}", "good", "bad", seed=4).left for n in range(400)]


def test_another_data_set_or_model_is_refused_by_name(path: Path) -> None:
    with begun(path, 1) as ledger:
        ledger.claim(IDENTITY, "m" * 64)
        ledger.claim(IDENTITY, None)
        before = ledger.events()
        with pytest.raises(UserError, match=r"of another data set \(pairs.jsonl, 9 pairs"):
            ledger.claim(replace(IDENTITY, data="e" * 64))
        with pytest.raises(UserError, match=r"of another model \(fingerprint mmmmmmmmmmmm"):
            ledger.claim(IDENTITY, "n" * 64)
        assert ledger.events() == before
        assert ledger.state().model == "m" * 64


def test_a_round_is_asked_once_and_in_the_order_that_is_wanted(path: Path) -> None:
    with begun(path, 0) as ledger:
        wanted = [question(n) for n in (4, 2, 0, 1, 3)]
        assert ledger.ask(wanted, 2, round=1) == AskedNow(1, 2, 0, None)
        assert ledger.ask(wanted, 2, round=1) == AskedNow(1, 0, 2, None)
        assert ledger.ask(wanted, 2) == AskedNow(2, 2, 0, None)
        state = ledger.state()
        assert [a.question.id for a in state.asked.values()] == ["4", "2", "0", "1"]
        assert [a.round for a in state.asked.values()] == [1, 1, 2, 2]
        assert state.asked[question(2).pair].question == question(2)
        for wrong in (1, 4):
            with pytest.raises(UserError, match=f"label.round={wrong}: the newest round .* is 2"):
                ledger.ask(wanted, 1, round=wrong)


def test_the_budget_is_never_overrun(path: Path) -> None:
    many = [question(n) for n in range(9)]
    with begun(path, 3, budget=5) as ledger:
        assert ledger.ask(many, 4) == AskedNow(2, 2, 0, 0)
        with pytest.raises(UserError, match=r"label.budget=5: is used up"):
            ledger.ask(many, 1)
        with pytest.raises(UserError, match=r"label.budget=4: .* has asked about 5 pairs already"):
            ledger.ask(many, 1, budget=4)
        assert ledger.ask(many, 4, budget=6) == AskedNow(3, 1, 0, 0)
        assert (ledger.state().budget, len(ledger.state().asked)) == (6, 6)


def test_an_answer_twice_changes_nothing_and_another_one_is_kept(path: Path) -> None:
    with begun(path, 2) as ledger:
        assert ledger.answer([says(0, "ann", "left")]) == Recorded(new=1)
        assert ledger.answer([says(0, "ann", "left")]) == Recorded(same=1)
        assert ledger.answer([says(0, "ann", "right"), says(0, "bo", "left")]) == Recorded(1, 1, 0)
        assert ledger.answer([says(0, "ann", "right", strength=2.0)]) == Recorded(changed=1)
        kept = ledger.state().answers[question(0).pair]
        assert [(a.annotator, a.outcome) for a in kept] == [
            ("ann", "left"), ("ann", "right"), ("bo", "left"), ("ann", "right"),
        ]  # fmt: skip
        latest = ledger.state().latest(question(0).pair)
        assert {who: a.says for who, a in latest.items()} == {
            "ann": ("right", 2.0), "bo": ("left", None),
        }  # fmt: skip


def test_an_old_answer_that_comes_again_does_not_become_the_latest(path: Path) -> None:
    early, late = says(0, "ann", "left", time=MORNING), says(0, "ann", "right", time=NOON)
    with begun(path, 1) as ledger:
        assert ledger.answer([early, late]) == Recorded(1, 1, 0)
        assert ledger.answer([early]) == Recorded(same=1)
        assert ledger.state().latest(early.pair)["ann"] == late
    with begun(path.with_name("other"), 1) as ledger:
        ledger.answer([late, early])
        assert ledger.state().latest(early.pair)["ann"] == late


def test_answers_are_recorded_all_or_none(path: Path) -> None:
    with begun(path, 1) as ledger:
        with pytest.raises(UserError, match="has not asked about it"):
            ledger.answer([says(0, "ann", "left"), says(5, "ann", "left")])
        assert ledger.state().answers == {}


def test_events_are_append_only_and_their_replay_is_exact(path: Path) -> None:
    with begun(path, 3, budget=4) as ledger:
        ledger.claim(IDENTITY, "m")
        ledger.answer([says(0, "ann", "tie", strength=0.5), says(1, "ann", "skip", time=NOON)])
        events, state = ledger.events(), ledger.state()
    for statement in ("UPDATE events SET body = '{}'", "DELETE FROM events"):
        with sqlite3.connect(path) as db, pytest.raises(sqlite3.IntegrityError, match="never"):
            db.execute(statement)
    with Ledger(path) as ledger:
        assert (ledger.events(), ledger.state()) == (events, state)
    assert replay(events) == state
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file not found; nemo-gdpo label select makes it"),
        (b'{"pair": 1}\n', "is not a ledger of nemo-gdpo label"),
        ("database", "is not a ledger of nemo-gdpo label"),
        ("cut", "is damaged"),
    ],
)
def test_what_is_no_ledger_is_refused(
    path: Path, content: bytes | str | None, message: str
) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "database":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE other (x)")
    elif content == "cut":
        begun(path, 3).close()
        path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match=message), Ledger(path) as ledger:
        ledger.state()
