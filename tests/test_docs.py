"""The documentation's pages of keys and metrics are what the code gives, and are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.evaluation.metrics.table import TABLE
from nemo_gdpo.launch.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "tools/docs_tables.py"]
KEYS = (ROOT / "docs" / "reference" / "keys.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")


def test_the_committed_pages_are_what_the_code_gives() -> None:
    done = subprocess.run(
        [*COMMAND, "--check"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "row",
    [
        "| `model.global_batch_size` | integer >= 1 | `8` |",
        "| `model.activations_checkpoint_granularity` | selective \\| full or null | `null` |",
        "| `optim.betas` | list of number >= 0 and < 1 | `[0.9, 0.95]` |",
        "| `objective.label_smoothing` (dpo) | number >= 0 and < 0.5 | `0` |",
        "| `generation.stop` | list of text | `[]` |",
        "| `evaluation.rewards` | list of value | `[vader]` |",
        "| `evaluation.rewards.N.max_length` | integer >= 1 | `512` |",
    ],
)
def test_a_row_says_type_default_and_range(row: str) -> None:
    # The keys of training and sampling stand once more among those of rounds.
    assert KEYS.partition("## nemo-gdpo rounds")[0].count(row) == 1


def test_every_key_that_training_reads_is_there() -> None:
    section = KEYS.split("\n## ")[1]
    listed = set(re.findall(r"^\| `([\w.]+)`", section, re.MULTILINE))
    assert listed == TRAIN.keys() - {"objective.name"}


def test_every_verb_with_a_configuration_is_there() -> None:
    headings = [line for line in KEYS.splitlines() if line.startswith("## nemo-gdpo ")]
    listed = {name for line in headings for name in line.removeprefix("## nemo-gdpo ").split(", ")}
    for verb in VERBS:
        followers = ((f"{verb.name} {f.name}", f.reads) for f in verb.followers)
        for name, reads in ((verb.name, verb.reads), *followers):
            assert (name in listed) is (reads is not None), name


def test_every_metric_is_there() -> None:
    assert METRICS.count("\n| `") == len(TABLE)
    for name in ("semantic_diversity", "reward.NAME.best", "kl_k3", "distinct_N"):
        assert f"| `{name}` |" in METRICS


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs says so too, but only where the documentation is built."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation


def test_variables_that_pages_name_are_read_somewhere() -> None:
    """A page that tells to export a name that nothing reads would do harm in silence."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        name for page in pages for name in re.findall(r"NEMO_GDPO_[A-Z_]*[A-Z]", page.read_text())
    }
    folders = ("nemo_gdpo", "conf", "slurm", "tools", "tests/image", "tests/system")
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".sh", ".sub"}
    ]
    read = "".join(path.read_text(encoding="utf-8") for path in [*files, ROOT / "Dockerfile"])
    assert "NEMO_GDPO_MAX_RESTARTS" in named
    assert {name for name in named if not re.search(rf"\b{name}\b", read)} == set()
