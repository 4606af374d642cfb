"""Malformed overrides: one line and status 2, or a configuration; never a traceback.

They are drawn from one seed: a failure can be repeated.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nemo_gdpo import cli
from nemo_gdpo.config.evaluation import EVALUATE
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR

COMMANDS = 150
ROOTS: dict[str, Root] = {  # type: ignore[type-arg]
    "validate": TRAIN, "train": TRAIN, "prepare": TRAIN, "generate": GENERATE, "evaluate": EVALUATE,
}  # fmt: skip
VALUES = (
    "", "null", "~", "[]", "[1,2]", "{a:1}", "{}", "-1", "0", "1e400", "nan", "-inf", "true",
    "x" * 300, "a/" * 3000, "\udcff", "\ud83d", "\x00", "\n", "a\nb", "${", "${oc.env:X}",
    "${nope}", "${model}", "${objective.name}", "???", "'", '"', "\\", "=", "a=b", "[", "]", "{",
    "}", "1,2", "\u2028", "/", "/dev/null/x", "10" * 200, "0x10", "1_000", "2024-01-01",
    "!!python/object:os.x",
    "*a", "&a", "@", "range(1,3)", "choice(a,b)", "glob(*)", "int(3)", "sort(2,1)", "$", "${${x}}",
    "%", "\U0001f600",
)  # fmt: skip
PARTS = (
    "", "+", "++", "~", "=", "\u00e9", "\udcff", ".", "..", "experiment", "objective", "model",
    "hydra", "hydra.run.dir", "defaults", "_target_", "@", "+experiment", "optim.lr", "data",
)  # fmt: skip
LETTERS = "abc._+~@=/[]{}$:,'\"\\ \n\t\u2028\u00e9\udcff"


def _key(draw: random.Random, keys: list[str]) -> str:
    kind = draw.random()
    if kind < 0.6:
        return draw.choice(keys)
    if kind < 0.75:
        return draw.choice(keys).rpartition(".")[0]
    if kind < 0.85:
        return draw.choice(keys) + draw.choice([".", " ", "x", ".x", "\n", "-", "@a", ":"])
    if kind < 0.92:
        return draw.choice(PARTS)
    return "".join(draw.choice(LETTERS) for _ in range(draw.randint(0, 12)))


def _override(draw: random.Random, keys: list[str]) -> str:
    prefix = draw.choice(["+", "++", "~"]) if draw.random() < 0.15 else ""
    value = "" if draw.random() < 0.05 else f"={draw.choice(VALUES)}"
    return f"{prefix}{_key(draw, keys)}{value}"


def _command(draw: random.Random) -> list[str]:
    verb = draw.choice(["validate", *ROOTS])
    keys = sorted(ROOTS[verb].keys())
    overrides = [_override(draw, keys) for _ in range(draw.randint(1, 5))]
    shown = ["--cfg", "job", "--resolve"]
    flags = draw.choice([[], ["--elsewhere"], shown]) if verb == "validate" else shown
    return [verb, *(text for text in overrides if not text.startswith("-")), *flags]


def test_malformed_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("in the way of every default output_dir")
    draw = random.Random(7)
    refused = 0
    for _ in range(COMMANDS):
        command = _command(draw)
        status = cli.main(command)
        captured = capsys.readouterr()
        assert status in (EXIT_DONE, EXIT_USER_ERROR), command
        if status == EXIT_USER_ERROR:
            refused += 1
            assert captured.err.startswith("nemo-gdpo: error: "), command
            assert len(captured.err) < 20_000, command
        captured.out.encode()
    assert refused > COMMANDS * 0.8
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (tmp_path / "runs").read_text() == "in the way of every default output_dir"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=-1", "model=-1: takes the name of a choice: "),
        ("objective=null", "objective=None: takes the name of a choice: "),
        ("+model=1e400", "cannot be composed"),
        ("+export_nemo=0 objective.subtb_lambda=-1", "cannot be composed"),
        (f"data.chat_template={'x' * 5000}", "holds a name of more than 255 bytes"),
        (f"output_dir={'x/' * 3000}", "has more than 4000 bytes"),
        ("output_dir=a\udcff", "'output_dir=a\\udcff' is no text in UTF-8"),
    ],
)
def test_what_the_fuzzing_found(
    override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", *override.split()]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("nemo-gdpo: error: ")
    assert said in error
    assert all(len(line) < 600 for line in error.splitlines())
