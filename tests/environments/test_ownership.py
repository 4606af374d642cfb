"""No two distributions own the same file, and what is known to be shared is named."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.environments.packages import put
from tools.environments import file_lists
from tools.environments.file_lists import entries, installed, listed, locked, problems
from tools.environments.ownership import conflicts, owners

SITE = Path(str(distribution("torch").locate_file("")))
"""The packages that these tests run with."""


def test_two_cuda_bindings_are_a_conflict(tmp_path: Path) -> None:
    # Files of the two wheels as they are: the older has its own copy of the newer's package.
    put(
        tmp_path,
        "cuda_bindings",
        "13.5.0",
        {"cuda/bindings/__init__.py": "13", "cuda/bindings/nvml.py": ""},
    )
    put(
        tmp_path,
        "cuda_python",
        "12.6.2.post1",
        {"cuda/bindings/__init__.py": "12", "cuda/cuda.py": ""},
    )
    assert list(conflicts(owners(tmp_path))) == [
        "cuda-bindings==13.5.0 and cuda-python==12.6.2.post1 both own cuda/bindings/__init__.py "
        "(different content)"
    ]


def test_the_same_content_is_a_conflict_too_unless_it_is_judged(tmp_path: Path) -> None:
    note = {"nv_one_logger/no_init.md": "none", "shared/__init__.py": ""}
    put(tmp_path, "nv_one_logger_core", "2.3.1", note)
    put(tmp_path, "nv_one_logger_training_telemetry", "2.3.1", note)
    (line,) = conflicts(owners(tmp_path))
    assert line.endswith("both own shared/__init__.py (the same content)")


def test_a_judged_file_whose_content_differs_is_a_conflict(tmp_path: Path) -> None:
    path = "transformer_engine/common/utils.py"
    put(tmp_path, "transformer_engine", "2.12.0", {path: "a"})
    put(tmp_path, "transformer_engine_cu13", "2.12.0", {path: "a"})
    assert list(conflicts(owners(tmp_path))) == []
    put(tmp_path, "transformer_engine_cu13", "2.12.0", {path: "b"})
    (line,) = conflicts(owners(tmp_path))
    assert line == (
        "transformer-engine-cu13==2.12.0 and transformer-engine==2.12.0 both own "
        "transformer_engine/common/utils.py (different content)"
    )


def test_files_that_nothing_reads_may_differ(tmp_path: Path) -> None:
    put(tmp_path, "flashinfer_python", "0.7.0", {"build_backend.py": "a"})
    put(tmp_path, "torch_c_dlpack_ext", "0.1.5", {"build_backend.py": "b"})
    assert list(conflicts(owners(tmp_path))) == []
    put(tmp_path, "third", "1.0", {"build_backend.py": "b"})
    assert len(list(conflicts(owners(tmp_path)))) == 1


def test_a_script_of_two_distributions_is_a_conflict(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    put(site, "one", "1.0", {"../../../bin/tool": "a"})
    put(site, "two", "1.0", {"../../../bin/tool": "b"})
    assert list(conflicts(owners(site))) == [
        "one==1.0 and two==1.0 both own ../../../bin/tool (different content)"
    ]


def test_the_environment_that_runs_the_tests_has_no_file_with_two_owners() -> None:
    found = owners(SITE)
    assert len(found) > 10_000
    assert list(conflicts(found)) == []


def test_a_folder_of_one_distribution_is_one_entry(tmp_path: Path) -> None:
    put(
        tmp_path,
        "torch",
        "2.13.0+cpu",
        {"torch/a.py": "", "torch/b/c.py": "", "nvidia/lib/x.so": ""},
    )
    put(tmp_path, "nvidia_nccl", "2.29.7", {"nvidia/lib/y.so": "", "nvidia/include/nccl.h": ""})
    assert entries(owners(tmp_path)) == {
        "nvidia-nccl==2.29.7": ["nvidia/include/", "nvidia/lib/y.so"],
        "torch==2.13.0": ["nvidia/lib/x.so", "torch/"],
    }


def lists(tmp_path: Path, name: str, distributions: dict[str, list[str]]) -> Path:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"distributions": distributions, "shared": {}}))
    return path


@pytest.fixture
def two_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lists, "locked", lambda name: {"a==1", "b==2"})


@pytest.mark.usefixtures("two_locked")
@pytest.mark.parametrize(
    ("distributions", "problem"),
    [
        ({"a==1": ["a/"], "b==2": ["b/", "a.py"]}, None),
        ({"a==1": ["a/"], "b==3": ["b/"]}, "is not of the locked versions (b==2, b==3)"),
        ({"a==1": ["a/"]}, "is not of the locked versions (b==2)"),
        ({"a==1": ["a/"], "b==2": ["a/b/c.py"]}, "a==1 owns a/, and b==2 owns a/b/c.py"),
        ({"a==1": ["a/", "b/x/"], "b==2": ["b/"]}, "b==2 owns b/, and a==1 owns b/x/"),
        ({"a==1": ["x.py"], "b==2": ["x.py"]}, "a==1 owns x.py, and b==2 owns x.py"),
    ],
)
def test_a_list_is_of_the_locked_versions_and_its_entries_do_not_overlap(
    distributions: dict[str, list[str]], problem: str | None, tmp_path: Path
) -> None:
    found = list(problems("generation-gpu", lists(tmp_path, "x", distributions), {}))
    assert len(found) == (problem is not None)
    assert problem is None or found[0].startswith(problem)


@pytest.mark.usefixtures("two_locked")
def test_a_list_names_what_is_shared(tmp_path: Path) -> None:
    path = lists(tmp_path, "x", {"a==1": ["a/"], "b==2": ["b/"]})
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "shared": {"c.py": {"a==1": "x", "b==2": "y"}}}))
    assert list(problems("training-gpu", path, {})) == [
        "a==1 and b==2 both own c.py (different content)"
    ]


@pytest.mark.usefixtures("two_locked")
def test_what_a_lock_adds_is_compared_with_what_is_installed_below_it(tmp_path: Path) -> None:
    path = lists(tmp_path, "x", {"a==1": ["a/", "n/x.so"], "b==2": ["PREFIX/bin/b"]})
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    # The same package from the index that the training environment came from is no second owner.
    put(site, "a", "1", {"a/__init__.py": "", "n/x.so": ""})
    put(site, "c", "3", {"c/__init__.py": "", "n/y.so": "", "../../../bin/c": ""})
    assert list(problems("training-gpu", path, installed(site))) == []
    put(site, "d", "4", {"a/d.py": "", "a/e.py": "", "../../../bin/b": ""})
    assert list(problems("training-gpu", path, installed(site))) == [
        "a==1 owns a/, and d==4 owns a/d.py",
        "b==2 owns PREFIX/bin/b, and d==4 owns PREFIX/bin/b",
    ]
    # Nothing is below the lock of generation-gpu.
    assert list(problems("generation-gpu", path, installed(site))) == []


def test_the_environments_that_ci_does_not_make_have_a_list_that_holds() -> None:
    assert set(listed()) == {"training-gpu", "generation-gpu"}
    below = installed(SITE)
    for name, least in (("training-gpu", 30), ("generation-gpu", 150)):
        assert list(problems(name, file_lists.LISTS / f"{name}.json", below)) == []
        assert len(locked(name)) > least


def test_a_lock_with_the_two_bindings_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = {"cuda-python==12.6.2.post1", "cuda-bindings==13.5.0"}
    now = {line for line in locked("generation-gpu") if line.split("==")[0] not in
           {"cuda-python", "cuda-bindings"}}  # fmt: skip
    monkeypatch.setattr(file_lists, "locked", lambda name: now | earlier)
    (line,) = problems("generation-gpu", file_lists.LISTS / "generation-gpu.json", {})
    assert line.startswith(
        "is not of the locked versions (cuda-bindings==13.4.4, cuda-bindings==13.5.0, "
        "cuda-python==12.6.2.post1, cuda-python==13.4.4); run `make python-generation-gpu`"
    )
