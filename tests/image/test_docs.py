"""The commands of docs/image.md, pasted into a shell whose docker, srun and so on only take notes.

What they would run in the image is then checked by the command line itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_gdpo.cli import main
from nemo_gdpo.launch.verbs import VERBS
from tools.environments.recipes import ENVIRONMENTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "image.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROGRAMS = ("docker", "srun", "sbatch", "apptainer", "enroot", "git")
NOTE = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=notes)
print("0123abc")
"""


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Every command of the page's blocks, in order, as words."""
    folder = tmp_path_factory.mktemp("programs")
    for name in PROGRAMS:
        (folder / name).write_text(NOTE)
        (folder / name).chmod(0o755)
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    own = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(folder / "notes")}
    script = "\n".join(block for block in blocks if not block.startswith("make "))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=own, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "notes").read_text().splitlines()]


def in_image(called: list[list[str]]) -> list[tuple[dict[str, str], list[str]]]:
    """(variables, arguments of nemo-gdpo) of everything that the page runs in the image."""
    found = []
    for words in called:
        if (
            words[:2] == ["docker", "run"]
            or words[0] == "srun"
            or words[:2] == ["apptainer", "exec"]
        ):
            place = words.index("nemo-gdpo") + 1
        else:
            continue
        pairs = [words[n + 1] for n in range(place) if words[n] == "--env"]
        given = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        found.append((given, words[place:]))
    return found


def test_the_page_shows_every_way_in(called: list[list[str]]) -> None:
    assert {words[0] for words in called} == set(PROGRAMS)
    verbs = [arguments[0] for _, arguments in in_image(called)]
    assert {"doctor", "validate", "convert", "train", "generate", "evaluate"} <= set(verbs)
    assert set(verbs) <= {verb.name for verb in VERBS}


def test_what_a_build_is_given_exists(called: list[list[str]]) -> None:
    known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    builds = [words for words in called if words[:2] == ["docker", "build"]]
    assert len(builds) == 2
    for words in builds:
        given = dict(
            words[n + 1].split("=", 1) for n, word in enumerate(words) if word == "--build-arg"
        )
        assert given["REVISION"] == "0123abc"
        assert given.keys() <= known
        assert {given[name] for name in ("TRAINING", "GENERATION") if name in given} <= {
            *ENVIRONMENTS
        }
    rows = set(re.findall(r"^\| `([A-Z_]+)`", PAGE, re.MULTILINE)) | {"SOURCE"}
    assert rows == known - {"DEBIAN_FRONTEND", "VERSION"}


def test_what_the_image_is_asked_to_do_is_valid(
    called: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = {"MODEL": "llama3-8b", "OUTPUT": "runs", "TRAIN": "hh", "VALIDATION": "hh"}
    for given, (verb, *rest) in in_image(called):
        for name, value in cluster.items():
            monkeypatch.setenv(f"NEMO_GDPO_{name}", f"/data/{value}")
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        if verb in ("train", "validate"):
            assert main(["validate", *rest, "--elsewhere"]) == 0, capsys.readouterr().err
        elif verb == "convert":
            assert main([verb, *rest]) == 2
            # The only thing that is wrong with it.
            assert "/data/llama3-8b/config.json does not exist" in capsys.readouterr().err
        elif verb != "doctor":
            assert main([verb, *rest, "--cfg", "job"]) == 0, capsys.readouterr().err


def test_containers_that_train_get_gpus_memory_time_and_a_user(called: list[list[str]]) -> None:
    runs = [words for words in called if words[:2] == ["docker", "run"] and "doctor" not in words]
    for words in runs:
        assert {"--ipc=host", "memlock=-1", "--user", "--volume"} <= set(words)
        assert words[words.index("--gpus") + 1] == "all"
        assert int(words[words.index("--stop-timeout") + 1]) >= 60
        # A key is named, its value is not on the command line.
        assert "WANDB_API_KEY" in words
