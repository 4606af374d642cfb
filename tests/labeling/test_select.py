"""`nemo-gdpo label select`: the order, the control arm, rounds, and what is refused."""

from __future__ import annotations

import pytest

from nemo_gdpo.errors import EXIT_USER_ERROR
from tests.labeling.commands import MARGINS, Desk


def test_the_most_uncertain_are_asked_first(desk: Desk) -> None:
    """3 (0.0), 1 (0.1), 5 (0.2), 0 (0.5); margins are turned to left over right."""
    out = desk.select(4, "label.budget=5")
    assert "round 1: asked about 4 pairs\n" in out
    assert "left of the budget: 1 pairs\n" in out
    assert desk.asked() == ["p3", "p1", "p5", "p0"]
    for asked in desk.state().asked.values():
        question = asked.question
        number = int(question.id[1:])
        sign = 1 if question.left == f"Good {number}." else -1
        assert question.margin == sign * MARGINS[number]
        assert question.model == "m" * 64


def test_a_round_again_asks_nothing_and_the_next_one_goes_on(desk: Desk) -> None:
    desk.select(2, "label.round=1")
    assert "asked about 0 pairs, and about 2 before" in desk.select(2, "label.round=1")
    out = desk.select(9, "label.budget=5")
    assert "that is less than label.count=9: the budget is used up" in out
    assert desk.asked() == ["p3", "p1", "p5", "p0", "p2"]
    assert "no other pair is left" in desk.select(9, "label.budget=7")


def test_the_control_arm_draws_by_its_seed_and_needs_no_margins(desk: Desk) -> None:
    arguments = ("label.strategy=random", f"data.train_path={desk.pairs}", "label.count=6")
    orders = []
    for seed in (1, 1, 2):
        desk.ledger.unlink(missing_ok=True)
        desk.done("select", *arguments, f"label.seed={seed}")
        orders.append(desk.asked())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == [f"p{n}" for n in range(6)]
    assert desk.state().model is None


def test_equal_margins_are_drawn_as_by_lot(desk: Desk) -> None:
    """Before the first update all margins are 0."""
    desk.margins.write_text(
        "".join(
            line if number == 0 else f'{line.partition(", ")[0]}, "margin": 0.0}}\n'
            for number, line in enumerate(desk.margins.read_text().splitlines(keepends=True))
        )
    )
    desk.select(6)
    uncertain = desk.asked()
    desk.ledger.unlink()
    desk.select(6, "label.strategy=random")
    assert desk.asked() == uncertain != sorted(uncertain)


def test_pairs_without_a_margin_are_not_asked_about(desk: Desk) -> None:
    desk.write_margins(count=3)
    assert "note: 3 pairs have no margin" in desk.select(6)
    assert desk.asked() == ["p1", "p0", "p2"]


def test_another_data_set_and_another_model_are_refused(desk: Desk) -> None:
    desk.select(1)
    before = desk.state()
    desk.write_margins(base="c" * 64)
    arguments = (f"data.train_path={desk.pairs}", f"label.margins={desk.margins}")
    status, _, error = desk.run("select", *arguments)
    assert (status, "is of another model (fingerprint bbbbbbbbbbbb" in error) == (2, True)
    desk.write_pairs("?")
    status, _, error = desk.run("select", *arguments)
    assert (status, "label.margins=" in error, "another data set" in error) == (2, True, True)
    status, _, error = desk.run("select", arguments[0], "label.strategy=random")
    assert (status, "label.ledger=" in error, "another data set" in error) == (2, True, True)
    assert error.count("\n") == 1
    assert desk.state() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "label.margins: is not set"),
        (("label.margins=none.jsonl",), "label.margins=none.jsonl: file not found"),
        (("label.strategy=best",), "label.strategy: 'best' is not one of uncertain, random"),
        (("label.count=0",), "label.count"),
        (("label.budget=-1",), "label.budget"),
        (("label.strategy=random", "label.round=3"), "label.round=3: the newest round"),
        (("label.strategy=random", "label.budget=0"), "label.budget=0: is used up"),
        (("label.url=http://h",), "label.url: is not a key of the configuration"),
    ],
)
def test_mistakes(desk: Desk, arguments: tuple[str, ...], message: str) -> None:
    status, _, error = desk.run("select", f"data.train_path={desk.pairs}", *arguments)
    assert status == EXIT_USER_ERROR
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.partition("\n")[2], "is not written by nemo-gdpo label margins"),
        (lambda text: text[: text.rindex('{"pair"')], "has 5 margins, and its first line says 6"),
        (lambda text: text.replace("0.5}", "null}"), "line 2: margin is no finite number"),
        (lambda text: text[:-9], "line 7: not valid JSON"),
    ],
)
def test_a_file_of_margins_that_is_damaged(desk: Desk, change: object, message: str) -> None:
    assert callable(change)
    desk.margins.write_text(change(desk.margins.read_text()))
    status, _, error = desk.run(
        "select", f"data.train_path={desk.pairs}", f"label.margins={desk.margins}"
    )
    assert (status, message in error) == (EXIT_USER_ERROR, True), error
    assert not desk.ledger.exists()
