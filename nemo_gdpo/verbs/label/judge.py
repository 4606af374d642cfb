"""`nemo-gdpo label judge`: a model behind an OpenAI-compatible server is one more annotator.

It is asked in both orders, as in an evaluation (`evaluation/judging/judge.py`): a preference for a
place comes to a tie. What it was asked and said stands beside the ledger, so that nothing is asked
twice.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nemo_gdpo.config.labeling import JUDGE, JudgeSection
from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import EXIT_DONE, RunError
from nemo_gdpo.evaluation.judging.judge import Judged, Pair, judge_pairs
from nemo_gdpo.evaluation.judging.judge_client import JudgeClient
from nemo_gdpo.evaluation.judging.transcript import Transcript
from nemo_gdpo.labeling.errors import LedgerError
from nemo_gdpo.labeling.events import Answer, Asked, Outcome
from nemo_gdpo.labeling.ledger import Ledger, Recorded
from nemo_gdpo.labeling.pairs import as_text
from nemo_gdpo.verbs.label.opened import given, open_ledger, state_of

KEY = "label.judge"
BATCH = 64
"""Pairs that are judged before their answers are recorded."""
OUTCOMES: dict[str, Outcome] = {
    "win": "left", "loss": "right", "tie": "tie", "inconsistent": "tie",
}  # fmt: skip
"""Outcome for the left response -> what is recorded; of others there is no answer."""


def run(request: Request) -> int:
    """Judge as configured; returns the exit status.

    Raises:
        UserError: the configuration is wrong, or the server takes no question.
        RunError: the server is gone; what it answered is kept.
    """
    config = request.parse(JUDGE).label
    model = given(config.judge.model, f"{KEY}.model", "name the judge's model")
    given(config.judge.url, f"{KEY}.url", "give the server's address, up to and with /v1")
    annotator = config.annotator or f"judge:{model}"
    with open_ledger(config) as ledger:
        state = state_of(ledger, config.round)
        open_ = [
            asked
            for asked in state.asked_in(config.round)
            if annotator not in state.latest(asked.question.pair)
        ]
        recorded, without = _judge(config, ledger, open_, annotator)
    print(f"{annotator}: {recorded.new} new answers, {2 * len(open_)} questions")
    if without:
        told = ", ".join(f"{count} {why}" for why, count in sorted(without.items()))
        print(f"note: no answer about {without.total()} pairs ({told})")
    if without["failed"]:
        raise LedgerError(
            f"the judge did not answer about {without['failed']} pairs; what it answered is kept: "
            "run the same command again"
        )
    return EXIT_DONE


def _judge(
    config: JudgeSection, ledger: Ledger, asked: list[Asked], annotator: str
) -> tuple[Recorded, Counter[str]]:
    """Judge and record, batch by batch; and why there is no answer, with counts."""
    judge = config.judge
    recorded, without = Recorded(), Counter[str]()
    client = JudgeClient(judge, KEY)
    try:
        with Transcript(Path(f"{ledger.path}.judge.jsonl")) as transcript:
            for start in range(0, len(asked), BATCH):
                batch = asked[start : start + BATCH]
                judged = judge_pairs(
                    [_pair(one) for one in batch], client, transcript,
                    model=str(judge.model), criterion=judge.criterion,
                    max_tokens=judge.max_tokens, concurrency=judge.concurrency,
                )  # fmt: skip
                answers = [
                    _answer(one, OUTCOMES[one.outcome], annotator)
                    for one in judged
                    if one.outcome in OUTCOMES
                ]
                recorded += ledger.answer(answers)
                without.update(one.outcome for one in judged if one.outcome not in OUTCOMES)
    except RunError:
        print(f"{annotator}: {recorded.new} new answers are recorded")
        raise
    finally:
        client.close()
    return recorded, without


def _pair(asked: Asked) -> Pair:
    """The left response against the right one."""
    question = asked.question
    return Pair(
        prompt_id=question.pair,
        prompt=question.prompt,
        response=as_text(question.left),
        other=as_text(question.right),
        run="left",
        sampling=f"round {asked.round}",
        sample=0,
    )


def _answer(judged: Judged, outcome: Outcome, annotator: str) -> Answer:
    return Answer(judged.pair.prompt_id, annotator, outcome, "judge")
