"""The command line: exit statuses and what is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_gdpo.conversion.cli import main
from tests.conversion.conftest import ModelMaker

ROOT = Path(__file__).parents[2]


def test_there_back_and_verify(
    make_model: ModelMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, megatron, back = str(make_model()), str(tmp_path / "m"), str(tmp_path / "b")
    assert main(["hf-to-megatron", source, megatron]) == 0
    assert "vocabulary 101 padded to 128" in capsys.readouterr().out
    assert main(["megatron-to-hf", megatron, back]) == 0
    report = tmp_path / "report"
    assert main(["verify", source, back, "--report", str(report)]) == 0
    assert json.loads((report / "report.json").read_text())["same"] is True
    assert main(["megatron-to-hf", megatron, back, "--dtype", "bf16"]) == 0
    capsys.readouterr()
    assert main(["verify", source, back]) == 1
    out = capsys.readouterr().out
    assert "differs: type torch.float32 and torch.bfloat16" in out
    assert "and 1 more" in out


def test_user_errors_are_one_line_and_exit_2(
    make_model: ModelMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(make_model())
    capsys.readouterr()
    assert main(["megatron-to-hf", source, str(tmp_path / "x")]) == 2
    assert main(["hf-to-megatron", str(tmp_path / "absent"), str(tmp_path / "x")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("that a conversion or a training run wrote")
    assert lines[1].startswith("error: ")


def test_tools_are_the_same_command(make_model: ModelMaker, tmp_path: Path) -> None:
    script = ROOT / "tools" / "convert_hf_to_megatron.py"
    done = subprocess.run(
        [sys.executable, str(script), str(make_model()), str(tmp_path / "m")],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / "dist" / ".metadata").is_file()
