"""Templates that write the day: an evaluation has one, whenever it is made or goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.data import PairEncoder
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation import evaluate
from nemo_gdpo.evaluation.results import Results
from tests.support.models import save_model

from .metrics.test_rewards import save_reward_model
from .written_runs import GOOD, NO_ENCODER, ordinary, point, row, run, write_run

CLOCK = "{{ strftime_now('%d %b %Y') }} "


def with_clock(directory: Path) -> Path:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = CLOCK + tokenizer.chat_template
    tokenizer.save_pretrained(directory)
    return directory


def sampled_on(directory: Path, date: str) -> Path:
    (directory / "manifest.json").write_text(json.dumps({"settings": {"date": date}}))
    return directory


@pytest.fixture
def reward(tmp_path: Path) -> str:
    directory = with_clock(save_reward_model(tmp_path / "reward", pad=True))
    return f"evaluation.rewards=[{{kind: hf_reward_model, path: {directory}}}]"


def test_the_day_of_a_reward_model(
    tmp_path: Path, reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "today", lambda: "2030-05-05")
    plain = ordinary(tmp_path / "plain", prompts=2)
    dated = sampled_on(ordinary(tmp_path / "dated", prompts=2), "2029-01-01")

    def evaluated(out: str, base: Path, *overrides: str) -> Results:
        return run(tmp_path / out, {"base": base, "other": plain}, NO_ENCODER, reward, *overrides)

    def rewards(results: Results) -> list[float | None]:
        return point(results, "other").per_prompt["reward.hf_reward_model"]

    first = evaluated("out", plain)
    assert first.settings["date"] == "2030-05-05"
    (tmp_path / "out" / "evaluation.json").write_text(first.to_json())
    monkeypatch.setattr(evaluate, "today", lambda: "2030-05-06")
    later = evaluated("out", plain)  # goes on with its own day
    assert later.settings["date"] == "2030-05-05"
    assert rewards(later) == rewards(first)
    # The day of the first run's prompts holds for all runs; one that is set, for all.
    of_the_prompts, given = (
        evaluated("b", dated),
        evaluated("c", dated, "evaluation.date=2030-05-05"),
    )
    assert (of_the_prompts.settings["date"], given.settings["date"]) == ("2029-01-01", "2030-05-05")
    assert rewards(given) == rewards(first) != rewards(of_the_prompts)


def test_a_day_that_nothing_writes_is_refused(tmp_path: Path) -> None:
    runs = {"base": ordinary(tmp_path / "in")}
    with pytest.raises(UserError, match=r"evaluation\.date: 2030-05-05 would not be read"):
        run(tmp_path / "out", runs, NO_ENCODER, "evaluation.date=2030-05-05")
    assert run(tmp_path / "out", runs, NO_ENCODER).settings["date"] is None


def test_rows_without_tokens_are_read_on_the_day_of_their_run(tmp_path: Path) -> None:
    """Each run's on its own, whatever the day of the first."""
    reference = with_clock(save_model(tmp_path / "reference"))
    bare = row("p0", GOOD, model_hash=weights_fingerprint(reference))
    tokenizer: Any = AutoTokenizer.from_pretrained(reference)

    def stored(day: str) -> dict[str, Any]:
        ids = PairEncoder(tokenizer, date=day).encode_prompt(bare["prompt"])
        return bare | {"prompt_token_ids": list(ids)}

    days = {"base": "2029-01-01", "other": "2031-12-31"}
    found = [
        run(
            tmp_path / f"out {kind}",
            {
                name: sampled_on(write_run(tmp_path / f"{name} {kind}", [rows(day)]), day)
                for name, day in days.items()
            },
            NO_ENCODER,
            f"evaluation.reference_model={reference}",
        )
        for kind, rows in (("bare", lambda day: bare), ("stored", stored))
    ]
    for name in days:
        again, kept = (point(results, name).per_prompt["perplexity"] for results in found)
        assert again == pytest.approx(kept)
    assert point(found[0]).per_prompt != point(found[0], "other").per_prompt
