"""What annotators give back, compared with what they were given: pair, order, round, data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.text import shown as listed
from nemo_gdpo.labeling.events import Asked
from nemo_gdpo.labeling.pairs import Words
from nemo_gdpo.labeling.state import State

PAIR, ROUND, DATA_SET, PROMPT, LEFT, RIGHT = "pair", "round", "data_set", "prompt", "left", "right"
GIVEN = (PAIR, ROUND, DATA_SET, PROMPT, LEFT, RIGHT)
"""Fields that come back as they were given."""
Render = Callable[[Words], Any]
"""How a text stands in a format."""
_REMEDY = "give back what nemo-gdpo label export wrote for this ledger"


def given(asked: Asked, state: State, render: Render) -> dict[str, Any]:
    """What an annotator is given of a pair."""
    question = asked.question
    assert state.identity is not None
    return {
        PAIR: question.pair,
        ROUND: asked.round,
        DATA_SET: state.identity.data,
        PROMPT: render(question.prompt),
        LEFT: render(question.left),
        RIGHT: render(question.right),
    }


def check_given(row: Mapping[str, Any], state: State, render: Render, where: str) -> Asked:
    """The pair that a row is about, once all of it is as it was given.

    Args:
        row: what came back.
        state: of the ledger.
        render: how texts stand in its format.
        where: file and line, for messages.

    Raises:
        UserError: a field is missing or differs: the data set, the pair, its order, its round.
    """
    missing = [name for name in GIVEN if name not in row]
    if missing:
        raise UserError(f"{where}: lacks {listed(missing)}; {_REMEDY}")
    assert state.identity is not None
    if row[DATA_SET] != state.identity.data:
        raise UserError(
            f"{where}: is of another data set (fingerprint {str(row[DATA_SET])[:12]}, the ledger's "
            f"is {state.identity.data[:12]}); {_REMEDY}"
        )
    pair = row[PAIR]
    asked = state.asked.get(pair) if isinstance(pair, str) else None
    if asked is None:
        raise UserError(f"{where}: pair {str(pair)[:12]} was not asked about; {_REMEDY}")
    expected = given(asked, state, render)
    if (row[LEFT], row[RIGHT]) == (expected[RIGHT], expected[LEFT]):
        raise UserError(
            f"{where}: left and right stand the other way round than they were asked; {_REMEDY}"
        )
    for name in (ROUND, PROMPT, LEFT, RIGHT):
        if row[name] != expected[name]:
            what = (
                f"round {row[name]}, not {expected[name]}" if name == ROUND else f"another {name}"
            )
            raise UserError(f"{where}: has {what} for pair {pair[:12]}; {_REMEDY}")
    return asked
