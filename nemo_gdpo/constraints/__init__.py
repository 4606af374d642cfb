"""Hard constraints on answers: a closed set of kinds, checked on the text, counted by name.

`constraint_problems` finds contradictions before anything is sampled; `constraints_of` compiles a
section; `Constraints.check` judges an answer, `log_reward` is what a verdict is worth, `Counts` and
`refuse_never_met` are for a round of them.
"""

from nemo_gdpo.constraints.check import (
    Constraints,
    Structure,
    Verdict,
    constraints_of,
    has_structure,
    is_constrained,
    log_reward,
)
from nemo_gdpo.constraints.conflicts import constraint_problems
from nemo_gdpo.constraints.counts import Counts, refuse_never_met
from nemo_gdpo.constraints.grammar import has_checker

__all__ = [
    "Constraints",
    "Counts",
    "Structure",
    "Verdict",
    "constraint_problems",
    "constraints_of",
    "has_checker",
    "has_structure",
    "is_constrained",
    "log_reward",
    "refuse_never_met",
]
