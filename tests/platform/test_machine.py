"""Packages as they are found: missing, broken, there."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from nemo_gdpo.platform import machine
from nemo_gdpo.platform.base import Support
from nemo_gdpo.platform.machine import ABSENT, USABLE, Package, probe


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("source", "failure"),
    [
        ("", ""),
        ("raise ImportError('libcudart.so.12: no such file\\nand more')", "libcudart.so.12: no"),
        ("import a_module_that_is_nowhere", "No module named 'a_module_that_is_nowhere'"),
        ("raise RuntimeError('\\n no CUDA')", "RuntimeError: no CUDA"),
        ("assert False, 'cuDNN is too old'", "AssertionError: cuDNN is too old"),
        ("raise OSError", "OSError: no reason given"),
        ("import os; os.no_such_name", "AttributeError"),
    ],
)
def test_whatever_an_import_raises_is_the_finding(site: Path, source: str, failure: str) -> None:
    (site / "engine_of_test").mkdir()
    (site / "engine_of_test" / "__init__.py").write_text("")
    (site / "engine_of_test" / "pytorch.py").write_text(source)
    found = probe("engine_of_test.pytorch")
    assert found.installed
    assert found.usable is (failure == "")
    assert failure in found.failure
    assert "\n" not in found.failure


def test_what_is_not_installed_is_absent() -> None:
    assert probe("engine_that_is_nowhere.pytorch") == ABSENT


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ABSENT),
        ({"apex/__init__.py": ""}, ABSENT),  # PyPI's, which is another project
        (
            {"apex/__init__.py": "", "apex/optimizers.py": ""},
            Package(True, "amp_C is not installed"),
        ),
        ({"apex/__init__.py": "", "apex/optimizers.py": "", "amp_C.py": ""}, USABLE),
        (
            {"apex/__init__.py": "", "apex/optimizers.py": "", "amp_C.py": "raise OSError('lib')"},
            Package(True, "OSError: lib"),
        ),
    ],
    ids=["absent", "PyPI", "without kernels", "whole", "broken kernels"],
)
def test_apex_is_nvidias_with_its_kernels(
    site: Path, files: dict[str, str], expected: Package
) -> None:
    (site / "apex").mkdir() if files else None
    for name, source in files.items():
        (site / name).write_text(source)
    assert machine._apex_optimizers() == expected


def test_fp8_is_asked_of_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three functions, which return (accepted, reason)."""
    fp8 = types.ModuleType("transformer_engine.pytorch.fp8")
    answers = {
        "check_fp8_support": (True, ""),
        "check_fp8_block_scaling_support": (False, "CUDA >= 12.9"),
        "check_mxfp8_support": (False, "not on 12.0+ architectures yet"),
    }
    for name, answer in answers.items():
        setattr(fp8, name, lambda answer=answer: answer)
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, fp8.__name__, fp8)
    assert machine._fp8_support() == {
        "fp8_tensorwise": Support(True),
        "fp8_blockwise": Support(False, "CUDA >= 12.9"),
        "fp8_mxfp8": Support(False, "not on 12.0+ architectures yet"),
    }


def test_this_machine_is_looked_at_without_failing() -> None:
    found = machine.look_at_machine()
    assert found.gpus >= 0
    assert (found.compute_capability is None) is (found.gpus == 0)
