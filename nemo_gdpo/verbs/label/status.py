"""`nemo-gdpo label status`: asked, answered, left, cost, agreement."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nemo_gdpo.config.labeling import STATUS
from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import EXIT_DONE
from nemo_gdpo.labeling.agreement import agreement
from nemo_gdpo.labeling.state import State
from nemo_gdpo.labeling.votes import labels
from nemo_gdpo.verbs.label.opened import open_ledger


def run(request: Request) -> int:
    """Print what a ledger holds; returns the exit status.

    Raises:
        UserError: the configuration is wrong, or the file is no ledger.
    """
    config = request.parse(STATUS).label
    with open_ledger(config) as ledger:
        found = status(ledger.state(), config.cost)
    if "--json" in request.flags:
        print(json.dumps(found))
    else:
        print(_in_words(found), end="")
    return EXIT_DONE


def status(state: State, prices: Mapping[Any, float]) -> dict[str, Any]:
    """What a ledger holds, as plain JSON.

    Args:
        state: of the ledger.
        prices: source -> price of one answer; answers that were changed cost again.
    """
    verdicts = Counter(label.verdict for label in labels(state).values())
    given = [answer for answers in state.answers.values() for answer in answers]
    sources = Counter(answer.source for answer in given)
    budget = state.budget
    return {
        "data": None if state.identity is None else asdict(state.identity),
        "model": state.model,
        "asked": len(state.asked),
        "rounds": {
            str(number): len(state.asked_in(number)) for number in range(1, state.last_round + 1)
        },
        "budget": budget,
        "budget_left": None if budget is None else budget - len(state.asked),
        "answered": len(state.answers),
        "unanswered": len(state.asked) - len(state.answers),
        "labels": dict(verdicts),
        "answers": dict(Counter(answer.annotator for answer in given)),
        "sources": dict(sources),
        "cost": sum(prices.get(source, 0.0) * count for source, count in sources.items())
        if prices
        else None,
        "agreement": asdict(agreement(state)),
    }


def _in_words(found: Mapping[str, Any]) -> str:
    data, cost = found["data"], found["cost"]
    rounds = ", ".join(f"{name}: {count}" for name, count in found["rounds"].items())
    limit = "no budget"
    if found["budget"] is not None:
        limit = f"budget {found['budget']}, {found['budget_left']} left"
    lines = {
        "data set": "none yet" if data is None else f"{data['name']}, {data['pairs']} pairs",
        "asked": f"{found['asked']} pairs, {limit}" + (f"; by round {rounds}" if rounds else ""),
        "answered": f"{found['answered']} pairs, {found['unanswered']} are left",
        "labels": _counted(found["labels"]),
        "answers": f"{_counted(found['answers'])}; by source: {_counted(found['sources'])}",
        "cost": "no prices are given (label.cost)" if cost is None else f"{cost:g}",
        "agreement": _agreed(found["agreement"]),
    }
    return "".join(f"{name:<11}{text}\n" for name, text in lines.items())


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _agreed(found: Mapping[str, Any]) -> str:
    if found["percent"] is None:
        return "no pair has answers of two annotators"
    alpha = "not defined" if found["alpha"] is None else f"{found['alpha']:.3f}"
    return (
        f"{100 * found['percent']:.1f} % of pairs of answers are equal, Krippendorff's alpha "
        f"{alpha}, over {found['pairs']} pairs and {found['annotators']} annotators"
    )
