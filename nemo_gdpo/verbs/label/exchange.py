"""`nemo-gdpo label export` and `import`: what annotators are given, and what they give back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from nemo_gdpo.config.labeling import EXPORT, IMPORT, ExportSection, ImportSection
from nemo_gdpo.config.problem import Problem, raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import EXIT_DONE, UserError
from nemo_gdpo.io.files import write_output
from nemo_gdpo.io.rows import encode_row
from nemo_gdpo.labeling import lines, studio
from nemo_gdpo.labeling.events import Answer, Asked
from nemo_gdpo.labeling.ledger import Ledger, Recorded
from nemo_gdpo.labeling.reading import read_answers
from nemo_gdpo.labeling.state import State
from nemo_gdpo.labeling.sync import BATCH, Studio
from nemo_gdpo.verbs.label.opened import given, open_ledger, state_of


def export(request: Request) -> int:
    """Write, or send, what is to be answered; returns the exit status.

    Raises:
        UserError: the configuration or the ledger is wrong, or the server refuses it.
        LedgerError: the server is gone.
    """
    config = request.parse(EXPORT).label
    raise_problems(_export_problems(config))
    with open_ledger(config) as ledger:
        state = state_of(ledger, config.round)
    asked = [
        one
        for one in state.asked_in(config.round)
        if config.answered or one.question.pair not in state.answers
    ]
    if not asked:
        raise UserError(
            "label export: every pair has an answer; set label.answered=true to have them "
            "answered again, or select more"
        )
    if config.url is not None:
        _send(config, asked, state)
    else:
        _write(config, asked, state)
    return EXIT_DONE


def _export_problems(config: ExportSection) -> list[Problem]:
    found = []
    if config.url is None and config.output is None:
        reason = "is not set, and neither is label.url"
        found.append(Problem("label.output", reason, "name the file to write"))
    if config.url is not None and config.output is not None:
        reason = "is set, and label.url sends the tasks to a server"
        found.append(Problem("label.output", reason, "remove one of both"))
    return found + _of_both(config)


def _of_both(config: ExportSection | ImportSection) -> list[Problem]:
    if config.url is not None and config.format != "label_studio":
        reason = f"is {config.format}, and label.url is a Label Studio"
        return [Problem("label.format", reason, "remove one of both")]
    if config.url is None and config.project is not None:
        return [Problem("label.project", "is set without label.url", "set the server's address")]
    return []


def _write(config: ExportSection, asked: list[Asked], state: State) -> None:
    path = Path(str(config.output))
    if config.format == "jsonl":
        write_output(path, b"".join(encode_row(row) for row in lines.rows(asked, state)))
        print(f"{len(asked)} pairs: {path}")
        return
    text = json.dumps(studio.tasks(asked, state), ensure_ascii=False, indent=1)
    write_output(path, text.encode("utf-8", "backslashreplace") + b"\n")
    view = path.with_suffix(".xml")
    write_output(view, studio.CONFIG)
    print(f"{len(asked)} tasks: {path}\nlabelling configuration: {view}")


def _send(config: ExportSection, asked: list[Asked], state: State) -> None:
    server = Studio(str(config.url))
    project = config.project
    if project is None:
        project = server.make_project(config.title)
        print(f"project {project} is made; give label.project={project} from now on", flush=True)
    sent = server.push(project, studio.tasks(asked, state))
    print(f"{sent} tasks sent to project {project}, {len(asked) - sent} were there")


def import_(request: Request) -> int:
    """Record what came back; returns the exit status.

    Raises:
        UserError: the configuration, the file or an annotation is wrong; of a file nothing is
            recorded then, of a server what was right.
        LedgerError: the server is gone; what came before is recorded.
    """
    config = request.parse(IMPORT).label
    raise_problems(_import_problems(config))
    with open_ledger(config) as ledger:
        state = state_of(ledger, config.round)
        if config.url is not None:
            recorded = _fetch(config, ledger, state)
        else:
            path = Path(given(config.answers, "label.answers", "name the file that came back"))
            found = read_answers(path, config.format, state)
            recorded = ledger.answer(_of_round(found, config.round, state))
    _tell(recorded)
    return EXIT_DONE


def _tell(recorded: Recorded) -> None:
    print(
        f"{recorded.new} new answers, {recorded.changed} changed, "
        f"{recorded.same} were there already"
    )


def _import_problems(config: ImportSection) -> list[Problem]:
    found = _of_both(config)
    if config.url is not None and config.answers is not None:
        reason = "is set, and label.url fetches answers from a server"
        found.append(Problem("label.answers", reason, "remove one of both"))
    if config.url is not None and config.project is None:
        found.append(Problem("label.project", "is not set", "give the project's number there"))
    return found


def _of_round(answers: Iterable[Answer], round: int | None, state: State) -> list[Answer]:
    return [a for a in answers if round in (None, state.asked[a.pair].round)]


def _fetch(config: ImportSection, ledger: Ledger, state: State) -> Recorded:
    """Record a server's answers batch by batch: what came before it went is kept."""
    recorded, problems = Recorded(), list[str]()
    tasks = Studio(str(config.url)).tasks(int(config.project or 0))
    try:
        while batch := list(islice(tasks, BATCH)):
            found: list[Answer] = []
            for task in batch:
                try:
                    found += studio.answers_in(task, state, f"{config.url}, task {task.get('id')}")
                except UserError as error:
                    problems.append(str(error))
            recorded += ledger.answer(_of_round(found, config.round, state))
        raise_problems(problems)
    except BaseException:
        if recorded != Recorded():
            _tell(recorded)
        raise
    return recorded
