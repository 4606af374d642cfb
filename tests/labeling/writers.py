"""A process that writes to a ledger: `python -m tests.labeling.writers KIND PATH NAME COUNT`.

`ask` asks for COUNT more pairs, one a round, until the budget is used up; `answer` answers every
pair that is there, over and over, one transaction an answer. Each prints a line when it has begun.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nemo_gdpo.errors import UserError
from nemo_gdpo.labeling.ledger import Ledger
from tests.labeling.ledgers import IDENTITY, question, says

PAIRS = 400


def ask(path: Path, budget: int) -> None:
    """Ask, one pair a transaction."""
    with Ledger(path, make=True) as ledger:
        ledger.claim(IDENTITY)
        print("begun", flush=True)
        for _ in range(PAIRS):
            try:
                ledger.ask([question(n) for n in range(PAIRS)], 1, budget=budget)
            except UserError as error:
                assert "is used up" in str(error), error
                return


def answer(path: Path, name: str, count: int) -> None:
    """Answer the first `count` pairs."""
    with Ledger(path) as ledger:
        print("begun", flush=True)
        for number in range(count):
            ledger.answer([says(number, name, "left" if number % 2 else "right")])


if __name__ == "__main__":
    kind, file, who, number = sys.argv[1:]
    if kind == "ask":
        ask(Path(file), int(number))
    else:
        answer(Path(file), who, int(number))
