"""The rules of the project: who imports whom, how long files are, what never occurs in them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500
RUN_CONTRACTS = "from importlinter.cli import lint_imports_command as main; main()"
RESTRICTED = ROOT / "nemo_gdpo" / "conversion" / "formats" / "dist_metadata.py"
"""Holds the one unpickler: it constructs classes of an allow-list only."""

FORBIDDEN = {
    "remote code of a model": r"\btrust_remote_code\s*=\s*True\b",
    "unrestricted torch.load": r"\bweights_only\s*=\s*False\b",
    "pickle": r"\b(?:pickle|cPickle|dill|cloudpickle)\s*\.\s*loads?\s*\(",
    "a shell": r"\bshell\s*=\s*True\b",
    # Method calls such as model.eval() are something else.
    "eval": r"(?<![\w.])eval\s*\(",
    "exec": r"(?<![\w.])exec\s*\(",
    "objects named by a configuration": r"_target_",
}


def sources(*folders: str) -> list[Path]:
    """Python files below folders of the checkout."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def without_docstrings(path: Path) -> str:
    """The file's code, comments and docstrings gone, as Python prints it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        kept = [
            statement
            for statement in body
            if not (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            )
        ]
        node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def test_packages_import_in_allowed_directions_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN_CONTRACTS, "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # A configuration without contracts would pass, too.
    kept = re.search(r"Contracts: (\d+) kept, 0 broken", done.stdout)
    assert kept is not None and int(kept[1]) >= 4, done.stdout


def test_files_stay_readable() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources("nemo_gdpo", "examples")
    }
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_that_runs_foreign_code(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sources("nemo_gdpo", "examples", "tools")
        for match in pattern.finditer(without_docstrings(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("remote code of a model", "load(path, trust_remote_code=True)"),
        ("unrestricted torch.load", "torch.load(path, weights_only=False)"),
        ("pickle", "pickle.load(file)"),
        ("pickle", "pickle.loads(data)"),
        ("a shell", "subprocess.run(command, shell=True)"),
        ("eval", "x = eval(text)"),
        ("exec", "exec(text)"),
        ("objects named by a configuration", "cfg['_target_']"),
    ],
)
def test_the_search_would_find_it(tmp_path: Path, what: str, line: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(f'"""Words about {what}."""\n\n{line}\n')
    assert re.search(FORBIDDEN[what], without_docstrings(file)) is not None


def test_only_the_restricted_unpickler_knows_pickle() -> None:
    importing = [
        path
        for path in sources("nemo_gdpo", "examples", "tools")
        if re.search(
            r"^\s*(?:import|from) (?:pickle|dill|marshal|shelve)\b", path.read_text(), re.M
        )
    ]
    assert importing == [RESTRICTED]
    tree = ast.parse(RESTRICTED.read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "pickle"
    }
    assert used == {"Unpickler"}
    overridden = {
        node.name
        for cls in ast.walk(tree)
        if isinstance(cls, ast.ClassDef) and "Unpickler" in cls.name
        for node in cls.body
        if isinstance(node, ast.FunctionDef)
    }
    assert {"find_class", "persistent_load"} <= overridden


def test_the_makefile_parses() -> None:
    done = subprocess.run(
        ["make", "-n", "demo", "test", "python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for part in ("-m examples.film_reviews.demo", "-m pytest", "tools/environment.py training"):
        assert part in done.stdout
