"""The ledger that a step of `nemo-gdpo label` works on."""

from __future__ import annotations

from typing import TypeVar

from nemo_gdpo.config.labeling import LedgerConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.labeling.ledger import Ledger
from nemo_gdpo.labeling.state import State

T = TypeVar("T")


def given(value: T | None, key: str, remedy: str) -> T:
    """A key that a step cannot do without.

    Raises:
        UserError: it is not set.
    """
    if value is None:
        raise UserError(f"{key}: is not set; {remedy}")
    return value


def open_ledger(config: LedgerConfig, *, make: bool = False) -> Ledger:
    """The ledger of a configuration.

    Raises:
        UserError: none is named, or it cannot be opened.
    """
    return Ledger(given(config.ledger, "label.ledger", "name the ledger's file"), make=make)


def state_of(ledger: Ledger, round: int | None) -> State:
    """What a ledger holds, once pairs were asked about.

    Raises:
        UserError: none were, at all or in that round.
    """
    state = ledger.state()
    if not state.asked:
        raise UserError(
            f"label.ledger={ledger.path}: has asked about no pair; run nemo-gdpo label select first"
        )
    if not state.asked_in(round):
        raise UserError(
            f"label.round={round}: {ledger.path} has rounds 1 to {state.last_round}; correct it"
        )
    return state
