"""`python -m tests.support.answer_ledger LEDGER PAIRS [tie|turned]`: answer all open questions.

The answer is what the file of pairs says: its chosen response; or a tie, or the other one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nemo_gdpo.labeling.events import Answer, Outcome
from nemo_gdpo.labeling.ledger import Ledger

OWN_METRICS = ("adpo/waiting",)
"""Of a run with a ledger, which a simulation without one does not have."""


def answer(path: Path, pairs: Path, how: str = "true") -> int:
    """Answer what is open in a ledger; returns the number of answers."""
    chosen = {row["id"]: row["chosen"] for row in map(json.loads, pairs.read_text().splitlines())}
    with Ledger(path) as ledger:
        state, answers = ledger.state(), []
        for key, asked in state.asked.items():
            left_is_chosen = asked.question.left == chosen[asked.question.id]
            outcome: Outcome = "left" if left_is_chosen is (how == "true") else "right"
            if not state.latest(key):
                answers.append(Answer(key, "ann", "tie" if how == "tie" else outcome, "person"))
        ledger.answer(answers)
    return len(answers)


if __name__ == "__main__":
    answer(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
