"""Samples of one directory are of one day, whenever the rest of them is made."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from nemo_gdpo.config.generation import GenerateConfig, PromptsConfig, SampledModelConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.manifest import MANIFEST, differences, sampled_date
from nemo_gdpo.generation.model import encoder
from tests.support.models import llama3_tokenizer
from tests.support.tokenizers import LLAMA3


def config(tmp_path: Path, template: str, date: str | None = None) -> GenerateConfig:
    tokenizer = llama3_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    return GenerateConfig(
        output_dir=str(tmp_path / "out"),
        model=SampledModelConfig(restore_from_path=str(tmp_path / "model")),
        data=PromptsConfig(date=date),
    )


CLOCK = "{{ strftime_now('%d %b %Y') }} " + LLAMA3


def sampled(tmp_path: Path, date: str | None) -> None:
    """What a run of some day has left."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text(json.dumps({"settings": {"date": date}}))


def test_the_day_of_the_first_samples_goes_on(tmp_path: Path) -> None:
    today = datetime.date.today()
    first = encoder(config(tmp_path, CLOCK)).date
    assert first is not None
    assert abs((datetime.date.fromisoformat(first) - today).days) <= 1
    sampled(tmp_path, "2024-07-26")
    assert encoder(config(tmp_path, CLOCK)).date == "2024-07-26"


def test_a_day_that_is_set_is_that(tmp_path: Path) -> None:
    sampled(tmp_path, "2024-07-26")
    given = encoder(config(tmp_path, CLOCK, date="2031-01-01"))
    assert given.date == "2031-01-01"
    # And the store refuses to mix them.
    there, here = ({"settings": {"date": day}} for day in ("2024-07-26", "2031-01-01"))
    (line,) = differences(there, here)
    assert line.startswith("settings.date is ")


def test_a_day_that_nothing_would_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.date: 2031-01-01 would not be read"):
        encoder(config(tmp_path, LLAMA3, date="2031-01-01"))


def test_no_samples_have_no_day(tmp_path: Path) -> None:
    assert sampled_date(tmp_path) is None
    sampled(tmp_path, None)
    assert sampled_date(tmp_path / "out") is None
