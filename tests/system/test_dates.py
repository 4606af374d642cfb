"""A template with a clock: a run that is resumed later trains on the tokens that it began with."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest

from nemo_gdpo.config.lora import TARGETS
from tests.support.commands import Result, common, several
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.tokenizers import LLAMA3

pytestmark = pytest.mark.parallel

BEGAN = "2024-07-26"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    """A run that began on another day, and what becomes of it today."""
    root = tmp_path_factory.mktemp("dates")
    model = save_model(root / "model")
    data = write_jsonl(root / "train.jsonl", pairs(16))
    (root / "clock.jinja").write_text("{{ strftime_now('%d %b %Y') }} " + LLAMA3)

    def run(output: str, *more: str, verb: str = "train") -> list[str]:
        given = common(model, data, root / output, f"data.chat_template={root / 'clock.jinja'}")
        return [verb, *given, "objective=dpo", f"data.validation_path={data}", *more]

    prepared = f"data.train_path={root / 'prepared' / 'train'}"
    done = several(
        root / "logs",
        {
            "began": run("run", "trainer.max_steps=2", f"data.date={BEGAN}"),
            "copied": ["!", "cp", "-a", str(root / "run"), str(root / "other")],
            "lost": ["!", "cp", "-a", str(root / "run"), str(root / "lost")],
            "removed": ["!", "rm", "-r", str(root / "lost" / "data")],
            "resumed": run("run", "trainer.max_steps=4"),
            "resumed without its tokens": run("lost", "trainer.max_steps=4"),
            "another day": run("other", "trainer.max_steps=4", "data.date=2031-01-01"),
            "today": run("today", "trainer.max_steps=1"),
            "prepared": run("prepared", f"data.date={BEGAN}", verb="prepare"),
            "from prepared": run("of-prepared", "trainer.max_steps=1", prepared),
        },
    )
    return root, done


def date_of(output: Path, split: str = "train") -> object:
    manifest = json.loads((output / "data" / split / "manifest.json").read_text())
    return manifest["settings"].get("date")


def test_it_goes_on_with_the_tokens_it_began_with(
    outcome: tuple[Path, dict[str, Result]],
) -> None:
    root, done = outcome
    assert done["began"].status == 0, done["began"].err
    assert done["resumed"].status == 0, done["resumed"].err
    assert "resumed step_00000002: 2 of 4 steps" in done["resumed"].out
    assert "train: 16 pairs, as tokenised before in" in done["resumed"].out
    assert "validation: 16 pairs, as tokenised before in" in done["resumed"].out
    assert date_of(root / "run") == date_of(root / "run", "validation") == BEGAN
    assert json.loads((root / "run" / "identity.json").read_text())["settings"] == {
        "data.seed": 1234,
        "data.date": BEGAN,
        "optim.name": "adam",
        "optim.use_distributed_optimizer": False,
        "lora.rank": None,
        "lora.alpha": 32.0,
        "lora.targets": list(TARGETS),
        "lora.base_precision": "run",
        "label.ledger": None,
        "label.seed": 1234,
        "weights of reference_model": None,
    }


def test_the_day_is_remembered_without_the_tokens(
    outcome: tuple[Path, dict[str, Result]],
) -> None:
    root, done = outcome
    result = done["resumed without its tokens"]
    assert result.status == 0, result.err
    assert "as tokenised before" not in result.out
    assert date_of(root / "lost") == BEGAN


def test_another_day_is_another_run(outcome: tuple[Path, dict[str, Result]]) -> None:
    result = outcome[1]["another day"]
    assert result.status == 2
    (line,) = result.complaints
    assert f"(data.date: {BEGAN}, now 2031-01-01)" in line


def test_a_new_run_is_of_today(outcome: tuple[Path, dict[str, Result]]) -> None:
    root, done = outcome
    assert done["today"].status == 0, done["today"].err
    found = datetime.date.fromisoformat(str(date_of(root / "today")))
    assert abs((datetime.date.today() - found).days) <= 1


def test_prepared_pairs_keep_their_day(outcome: tuple[Path, dict[str, Result]]) -> None:
    root, done = outcome
    assert done["prepared"].status == 0, done["prepared"].err
    assert done["from prepared"].status == 0, done["from prepared"].err
    assert date_of(root / "of-prepared") == date_of(root / "of-prepared", "validation") == BEGAN
    shutil.rmtree(root / "of-prepared")
