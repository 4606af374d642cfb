"""Texts and tokens that end answers, as they are written on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_gdpo.config.composition import compose, config_yaml, read_config
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.stops import Stops, split_stops

SPECIAL = {"<|im_end|>": 7, "</s>": 2}


def _stops(*overrides: str) -> tuple[str, ...]:
    return GENERATE.parse(compose(overrides, root=GENERATE).plain).generation.stop


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r'["\n"]', "\n"),
        (r"['\n']", "\n"),
        (r'"\n\n"', "\n\n"),
        (r'["\t#"]', "\t#"),
        (r'["\u00e9"]', "é"),
        (r'["\ud83d\ude00"]', "😀"),
        (r'["\U0001f600"]', "😀"),
        (r'["\x41"]', "A"),
        (r"['a\\nb']", "a\\nb"),
        ("['\n']", "\n"),
        ("[END]", "END"),
    ],
)
def test_escapes_are_understood(written: str, text: str) -> None:
    assert _stops(f"generation.stop={written}") == (text,)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        (r"['\d']", r"the escape \d is not known; write \\ for a backslash"),
        (r"['x\']", "nemo-gdpo"),
        (r'["\ud83d"]', "half of a surrogate pair"),
        (r'["\U00110000"]', "is no character"),
        ("['']", "generation.stop"),
    ],
)
def test_escapes_that_are_not_known_are_refused(written: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        _stops(f"generation.stop={written}")
    assert complaint in str(caught.value) or complaint == "nemo-gdpo"
    assert "\n" not in str(caught.value)


def test_a_text_survives_the_way_to_another_process(tmp_path: Path) -> None:
    """The configuration is written down and read again by the generation environment."""
    config = GENERATE.parse(
        compose([r"generation.stop=['\n','a\\nb','\\\\']"], root=GENERATE).plain
    )
    assert config.generation.stop == ("\n", "a\\nb", "\\")
    file = tmp_path / "config.yaml"
    file.write_text(config_yaml(config), encoding="utf-8")
    assert read_config(file, GENERATE) == config


def test_special_tokens_become_stop_tokens() -> None:
    found = split_stops(("\n", "<|im_end|>", "END", "</s>", "<|im_end|>"), SPECIAL)
    assert found == Stops(("\n", "END"), (7, 2))


@pytest.mark.parametrize("text", ["\n<|im_end|>", "<|im_end|>\n", "x</s>", "<|im_end|></s>"])
def test_a_text_that_holds_a_special_token_would_never_be_found(text: str) -> None:
    with pytest.raises(UserError, match=r"generation\.stop: .* holds .*, a special token"):
        split_stops((text,), SPECIAL)
