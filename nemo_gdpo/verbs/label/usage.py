"""`nemo-gdpo label` without a step: says which there are."""

from __future__ import annotations

from nemo_gdpo.errors import EXIT_DONE, UserError

USAGE = """\
usage: nemo-gdpo label margins|select|export|import|judge|status [key=value] ...

Asks people and judges which response of a pair is better, and keeps the answers in a ledger.

  margins   what the present model of a run thinks of all pairs, on the run's own ranks
  select    ask about the pairs that it is least sure of, within a budget
  export    write tasks for Label Studio, or plain lines; with label.url send them to a server
  import    record answers; with label.url fetch them from a server
  judge     have a model behind an OpenAI-compatible server answer
  status    what was asked, answered and is left, its cost, and how far annotators agree

  nemo-gdpo label margins --config runs/adpo/config.yaml
  nemo-gdpo label select label.ledger=labels.sqlite data.train_path=pairs.jsonl \\
    label.margins=runs/adpo/margins/step_00000040.jsonl label.count=200 label.budget=1000
  nemo-gdpo label export label.ledger=labels.sqlite label.output=tasks.json
  nemo-gdpo label import label.ledger=labels.sqlite label.answers=project-1.json
  nemo-gdpo label status label.ledger=labels.sqlite

nemo-gdpo label STEP --help lists the keys of a step.
"""


def run(arguments: list[str]) -> int:
    """Print the steps; returns the exit status.

    Raises:
        UserError: something else than help is asked for.
    """
    if arguments and all(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return EXIT_DONE
    given = f" {arguments[0]}" if arguments else ""
    raise UserError(
        f"label{given}: name one of margins, select, export, import, judge, status; see "
        "nemo-gdpo label --help"
    )
