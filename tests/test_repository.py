"""What people meet before the code: workflows, hooks, citation and contribution guide hold true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import nemo_gdpo
from tools.check_files import problems

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def workflow(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text())
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    """The steps of all jobs of a workflow."""
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def commands(path: Path) -> list[str]:
    return [step["run"] for step in steps(path) if "run" in step]


def make_targets(shell: str) -> set[str]:
    """What commands of a shell make."""
    called = re.findall(r"^\s*make(?: -\w+| [A-Z]+=\S+)* ([a-z-]+)", shell, re.MULTILINE)
    return set(called)


def code_of(markdown: str) -> str:
    """Fenced blocks and inline code of a text, a line each."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", markdown)])


def test_there_are_the_workflows() -> None:
    assert {path.stem for path in WORKFLOWS} == {"docs", "lint", "nightly", "tests"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_only_and_pins_its_actions(path: Path) -> None:
    found = workflow(path)
    assert found["permissions"] == {"contents": "read"}
    assert True in found, "`on:` is the key True in YAML 1.1"
    for job in found["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action)
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_there_is(path: Path) -> None:
    assert commands(path)
    for command in commands(path):
        if command.startswith("make "):
            assert make_targets(command)
            assert make_targets(command) <= TARGETS
        else:
            assert (ROOT / command).is_file()


def test_ci_lints_builds_the_docs_and_runs_all_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert {"lint", "docs", "test"} <= make_targets(script) <= TARGETS
    assert ".ci/run" in commands(ROOT / ".github" / "workflows" / "nightly.yml")


def test_the_fast_tests_run_on_every_python_that_is_supported() -> None:
    (job,) = workflow(ROOT / ".github" / "workflows" / "tests.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    requires = re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert requires is not None and requires[1] == ">=3.11,<3.13"


def test_hooks_need_no_network_and_are_what_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (local,) = config["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    entries = {hook["entry"].removeprefix("make ") for hook in local["hooks"]}
    lint = re.search(r"^lint: ([a-z -]+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    assert entries == set(lint[1].split())


@pytest.mark.parametrize(
    "name", ["CONTRIBUTING.md", "README.md", ".github/pull_request_template.md"]
)
def test_commands_in_texts_exist(name: str) -> None:
    found = make_targets(code_of((ROOT / name).read_text()))
    assert found
    assert found <= TARGETS


def test_the_citation_is_of_this_version_and_names_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == nemo_gdpo.__version__
    assert [reference["authors"][0]["family-names"] for reference in citation["references"]] == [
        "Kwon", "Amini", "Ji",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.md", "text", "does not end with a newline"),
        ("a.md", "text\n\n", "ends with empty lines"),
        ("a.md", "text \n", "line 1: white space at the end"),
        ("a.md", "<<<<<<< HEAD\n", "line 1: a merge conflict"),
        ("a.yaml", "a: 1\na: 2\n", "the key a is there twice"),
        ("a.yaml", "a: [1\n", "cannot be parsed"),
        ("a.toml", "a = [\n", "cannot be parsed"),
        ("a.json", "{\n", "cannot be parsed"),
        ("a.jsonl", "{}\n{\n", "cannot be parsed"),
    ],
)
def test_files_that_are_wrong_are_found(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    (found,) = problems(path)
    assert said in found


def test_files_that_are_right_are_not(tmp_path: Path) -> None:
    for name, text in (("a.yaml", "a: 1\nb: {a: 2}\n"), ("a.jsonl", "{}\n{}\n"), ("b.md", "")):
        (tmp_path / name).write_text(text)
        assert list(problems(tmp_path / name)) == []
