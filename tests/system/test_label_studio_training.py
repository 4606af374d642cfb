"""ADPO asks through a real Label Studio: its questions are sent with the SDK, a real browser
answers them, the answers come back, and training goes on with them.

`make label-test`; it runs in the environment `label`, which has the SDK and what training needs.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_gdpo.config.labeling import KEY_VARIABLE
from nemo_gdpo.labeling.ledger import Ledger
from nemo_gdpo.labeling.pairs import as_text
from tests.support.answer_ledger import OWN_METRICS
from tests.support.browser import chromium
from tests.support.checkpoints import stored
from tests.support.commands import Result, cli, common, metrics, steps, without_timing
from tests.support.data import pairs, write_jsonl
from tests.support.label_studio import LabelStudio
from tests.support.models import save_model
from tests.support.ranks import ROOT, clean_environment
from tests.system.labelling_page import Annotator, Click

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("label_studio_sdk") is None,
    reason="label-studio-sdk is in the environment `label` (make label-test runs this file there)",
)

PAIRS, STEPS, OPEN = 8, 2, 4


@dataclass(frozen=True)
class Asking:
    """A run that stops for people, and what they are told to say."""

    root: Path
    studio: LabelStudio
    rows: list[dict[str, Any]]

    def train(self, name: str, *more: str) -> Result:
        arguments = common(self.root / "model", self.root / "pairs.jsonl", self.root / name, *more)
        return cli(
            "train", *arguments, "objective=adpo", "objective.gamma=50.0", "optim=adamw_constant",
            *steps(STEPS),
        )  # fmt: skip

    def live(self) -> Result:
        return self.train("live", f"label.ledger={self.ledger}", f"label.most_open={OPEN}")

    @property
    def ledger(self) -> Path:
        return self.root / "labels.sqlite"

    def label(self, step: str, *arguments: str, token: str) -> str:
        """What a step that ends well prints."""
        command = [sys.executable, "-m", "nemo_gdpo.cli", "label", step, *arguments]
        done = subprocess.run(
            [*command, f"label.ledger={self.ledger}", f"label.url={self.studio.url}"],
            env=clean_environment() | {"PYTHONPATH": str(ROOT), KEY_VARIABLE: token},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, token in done.stdout + done.stderr) == (0, False), done.stderr
        return done.stdout

    def open_tasks(self) -> list[dict[str, Any]]:
        """As the page shows them: those that nobody has answered."""
        with Ledger(self.ledger) as ledger:
            state = ledger.state()
        asked = [one.question for one in state.asked.values()]
        return [
            {"data": {side: as_text(getattr(one, side)) for side in ("prompt", "left", "right")}}
            for one in asked
            if one.pair not in state.answers
        ]

    def clicks(self, tasks: list[dict[str, Any]]) -> dict[str, Click]:
        """What the data calls chosen, so that the run has to be the simulation."""
        chosen = {row["chosen"] for row in self.rows}
        return {
            task["data"]["prompt"]: "left" if task["data"]["left"] in chosen else "right"
            for task in tasks
        }


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory, studio: LabelStudio) -> Asking:
    root = tmp_path_factory.mktemp("asking")
    save_model(root / "model")
    rows = [
        {
            "id": row["id"],
            # The page finds a task by its prompt.
            "prompt": f"{number}: {row['prompt'][0]['content']}",
            **{side: row[side][0]["content"] for side in ("chosen", "rejected")},
        }
        for number, row in enumerate(pairs(PAIRS))
    ]
    write_jsonl(root / "pairs.jsonl", rows)
    return Asking(root, studio, rows)


def test_it_trains_on_what_people_click(asking: Asking, personal_token: str) -> None:
    token = personal_token
    simulated = asking.train("simulated")
    assert simulated.status == 0, simulated.err

    stopped = asking.live()
    assert stopped.status == 75, stopped.err
    sent = asking.label("export", "label.title=Films", token=token)
    assert f"{OPEN} tasks sent to project" in sent
    project = sent.split("project ")[1].split(" ")[0]
    there = f"label.project={project}"

    with chromium() as browser:
        annotator = Annotator(
            browser.new_page(viewport={"width": 1100, "height": 480}), asking.studio
        )
        annotator.log_in()
        for turn in range(STEPS):
            tasks = asking.open_tasks()
            assert len(tasks) == OPEN
            annotator.answer(int(project), tasks, asking.clicks(tasks))
            came = asking.label("import", there, token=token)
            assert came == f"{OPEN} new answers, 0 changed, {turn * OPEN} were there already\n"
            gone_on = asking.live()
            last = turn == STEPS - 1
            assert gone_on.status == (0 if last else 75), gone_on.err
            if not last:
                again = asking.label("export", there, token=token)
                assert f"{OPEN} tasks sent to project {project}, 0 were there" in again

    lines = [without_timing(metrics(asking.root / name)) for name in ("live", "simulated")]
    assert [{k: v for k, v in one.items() if k not in OWN_METRICS} for one in lines[0]] == lines[1]
    weights = [
        stored(asking.root / name / "checkpoints" / f"step_{STEPS:08d}")
        for name in ("live", "simulated")
    ]
    for name, value in weights[1].items():
        assert torch.equal(weights[0][name], value), name
    with Ledger(asking.ledger) as ledger:
        state = ledger.state()
    answers = [answer for given in state.answers.values() for answer in given]
    assert {(answer.source, answer.outcome) for answer in answers} == {
        ("person", "left"),
        ("person", "right"),
    }
