"""`nemo-gdpo label select`: choose pairs, and note in the ledger that they are asked about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.config.labeling import SELECT, SelectConfig
from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import EXIT_DONE, UserError
from nemo_gdpo.labeling.choose import Margins, ordered, read_margins
from nemo_gdpo.labeling.events import Identity, Question
from nemo_gdpo.labeling.ledger import AskedNow
from nemo_gdpo.labeling.pairs import shown
from nemo_gdpo.verbs.label.opened import given, open_ledger

if TYPE_CHECKING:
    from nemo_gdpo.data.types import RawPair


def run(request: Request) -> int:
    """Select as configured; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong, or the budget is used up.
        LedgerError: the disk failed.
    """
    config = request.parse(SELECT)
    result = select(config)
    print(f"round {result.round}: asked about {result.asked} pairs{_before(result)}")
    if result.asked + result.before < config.label.count:
        why = "the budget is used up" if result.left == 0 else "no other pair is left"
        print(f"note: that is less than label.count={config.label.count}: {why}")
    if result.left is not None:
        print(f"left of the budget: {result.left} pairs")
    print(f"ledger: {config.label.ledger}")
    return EXIT_DONE


def _before(result: AskedNow) -> str:
    return f", and about {result.before} before" if result.before else ""


def select(config: SelectConfig) -> AskedNow:
    """Choose pairs and ask about them.

    Raises:
        UserError, LedgerError: see `run`.
    """
    from nemo_gdpo.data.keyed import keyed_pairs

    label, data = config.label, config.data
    given(label.ledger, "label.ledger", "name the ledger's file; it is made where it is missing")
    path = given(data.train_path, "data.train_path", "give the pairs")
    if label.strategy == "uncertain":
        given(
            label.margins,
            "label.margins",
            "give a file of nemo-gdpo label margins, or set label.strategy=random",
        )
    identity, pairs = keyed_pairs(
        path, format=data.reader_format, split=data.split, on_bad_pair=data.on_bad_pair
    )
    margins = None if label.margins is None else _margins(Path(label.margins), identity)
    questions = [
        _question(pair, label.seed, margins)
        for key, pair in pairs.items()
        if margins is None or key in margins.of_pair
    ]
    if len(questions) < len(pairs):
        missing = len(pairs) - len(questions)
        print(f"note: {missing} pairs have no margin (training leaves them out); not asked about")
    with open_ledger(label, make=True) as ledger:
        ledger.claim(identity, None if margins is None else margins.base)
        return ledger.ask(
            ordered(questions, label.strategy, label.seed),
            label.count,
            round=label.round,
            budget=label.budget,
        )


def _margins(path: Path, identity: Identity) -> Margins:
    margins = read_margins(path)
    if margins.data != identity.data:
        raise UserError(
            f"label.margins={path}: is of another data set (fingerprint {margins.data[:12]}) than "
            f"data.train_path={identity.name} ({identity.data[:12]}); give the one that the run "
            "trains on"
        )
    return margins


def _question(pair: RawPair, seed: int, margins: Margins | None) -> Question:
    """The pair in the order that is drawn; its margin turned to left over right."""
    one = shown(pair.prompt, pair.chosen, pair.rejected, seed)
    margin = None if margins is None else margins.of_pair[one.key]
    if margin is not None and one.left != pair.chosen:
        margin = -margin
    model = None if margins is None else margins.model
    return Question(one.key, pair.id, one.prompt, one.left, one.right, seed, margin, model)
