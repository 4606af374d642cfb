"""`nemo-gdpo generate` before any engine: refusals, help, the way into the other environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_gdpo import cli
from nemo_gdpo.config.composition import compose, read_config
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER_ERROR
from nemo_gdpo.generation import environment
from nemo_gdpo.generation.errors import GenerationError
from tests.support.ranks import ROOT

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No generation environment, whatever this machine has."""
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.delenv("NEMO_GDPO_MODEL", raising=False)
    monkeypatch.setattr(environment, "has_vllm", lambda: False)
    monkeypatch.setattr(environment, "ROOT", tmp_path)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    directory = tmp_path / "hf"
    directory.mkdir()
    (directory / "config.json").write_text('{"max_position_embeddings": 64}')
    (directory / "model.safetensors").write_bytes(b"x")
    return directory


@pytest.fixture
def valid(export: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "x"}\n')
    return [
        f"model.restore_from_path={export}",
        f"data.prompts_path={tmp_path}/p.jsonl",
        f"output_dir={tmp_path}/out",
    ]


def _refused(capsys: Capture, *arguments: str) -> str:
    assert cli.main(["generate", *arguments]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_help_names_the_groups(capsys: Capture) -> None:
    assert cli.main(["generate", "--help"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert out.startswith("usage: nemo-gdpo generate model.restore_from_path=DIR")
    assert "generation=  default | greedy | temperatures | verbalised" in out
    assert "objective=" not in out


def test_the_configuration_is_printed(capsys: Capture) -> None:
    arguments = ["generate", "generation.temperature=[0.7,1.0]", "--cfg", "job"]
    assert cli.main(arguments) == EXIT_DONE
    assert "temperature:\n  - 0.7\n  - 1.0\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("generation.temprature=1", "did you mean generation.temperature?"),
        ("generation.temperature=-1", "generation.temperature.0: -1 is not allowed"),
        ("generation.temperature=[]", "give one value at least"),
        ("generation.top_p=0", "generation.top_p.0: 0 is not allowed"),
        ("generation.backend=vlm", "did you mean vllm?"),
        ("generation=gredy", "did you mean greedy?"),
        ("objective=gdpo", "objective: is not a key of the configuration"),
        ("model=llama3_8b", "model: is a section, not a value"),
        ("generation.server.api_key=x", "looks like a credential"),
        ("--elsewhere", "unknown flag"),
    ],
)
def test_mistakes_are_one_line(argument: str, message: str, capsys: Capture) -> None:
    error = _refused(capsys, argument)
    assert message in error
    assert error.startswith("nemo-gdpo: error: ")
    assert error.count("\n") == 1


def test_all_that_is_missing_is_named_together(capsys: Capture) -> None:
    error = _refused(capsys, "generation.temperature=0")
    keys = [line.split(": ")[0].split(". ")[-1] for line in error.splitlines()[1:]]
    assert keys == ["model.restore_from_path", "data.prompts_path", "generation.num_samples"]


def test_a_directory_that_is_not_an_export(
    valid: list[str], tmp_path: Path, capsys: Capture
) -> None:
    wrong = tmp_path / "wrong"
    key = f"model.restore_from_path={wrong}"
    assert "does not exist" in _refused(capsys, *valid, key)
    wrong.mkdir()
    error = _refused(capsys, *valid, key)
    assert "has no config.json" in error
    assert "has no weights" in error
    (wrong / "config.json").write_text("{}")
    (wrong / "pytorch_model.bin").write_bytes(b"x")
    assert "has pickled weights only (pytorch_model.bin)" in _refused(capsys, *valid, key)
    (wrong / "dist").mkdir()
    (wrong / "dist" / "__0_0.distcp").write_bytes(b"x")
    error = _refused(capsys, *valid, key)
    assert "is a Megatron checkpoint" in error
    assert f"nemo-gdpo convert megatron-to-hf {wrong}" in error
    assert error.count("\n") == 1
    archive = tmp_path / "m.nemo"
    archive.write_bytes(b"x")
    assert "is a file" in _refused(capsys, *valid, f"model.restore_from_path={archive}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generation.backend=server"], "generation.server.url: is not set"),
        (
            ["generation.backend=server", "generation.server.url='host:1'"],
            "is not an http or https address",
        ),
        (
            ["generation.backend=server", "generation.server.url='http://me:word@host/v1'"],
            "generation.server.url: it carries a user, a password or a query",
        ),
        (
            ["generation.server.url='http://h/v1'"],
            "generation.server.url: is set, and with generation.backend=vllm nothing would read it",
        ),
        (["generation.ray.replicas=2"], "generation.ray.replicas: is set, and with"),
        (
            [
                "generation.backend=server",
                "generation.server.url='http://h/v1'",
                "generation.dtype=bf16",
            ],
            "generation.dtype: is set, and with generation.backend=server it is the server's",
        ),
        (
            ["generation.backend=ray", "model.adapter_path=/adapter"],
            "model.adapter_path: is set, and with generation.backend=ray nothing would read it",
        ),
        (
            ["model.adapter_path=/adapter"],
            "model.adapter_path: /adapter has no adapter_config.json",
        ),
    ],
)
def test_settings_of_another_backend(
    valid: list[str], overrides: list[str], message: str, capsys: Capture
) -> None:
    assert message in _refused(capsys, *valid, *overrides)


# -- the other environment -------------------------------------------------------------------------


def test_no_environment_names_the_command_that_makes_one(valid: list[str], capsys: Capture) -> None:
    error = _refused(capsys, *valid)
    assert "no generation environment was found" in error
    assert "`make python-generation`" in error
    assert error.count("\n") == 1


def test_a_named_python_that_is_none(
    valid: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "generation.python: /no/python is not a program" in _refused(
        capsys, *valid, "generation.python=/no/python"
    )
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path))
    assert f"{environment.VARIABLE}: {tmp_path} is not a program" in _refused(capsys, *valid)
    monkeypatch.setenv(environment.VARIABLE, "/bin/false")
    assert "a Python that does not start" in _refused(capsys, *valid)


def test_a_python_without_vllm(
    valid: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one: the training environment has none."""
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    assert f"{sys.executable} has no vLLM" in _refused(capsys, *valid)


def _write_stub(path: Path, body: str) -> Path:
    """A `python` that has vLLM, for all one can tell, and runs a script instead of the sampler."""
    script = path / "python"
    script.write_text(
        f"#!{sys.executable} -S\nimport os, signal, sys, time\n"
        "if sys.argv[1] == '-c': sys.exit(0)\n"
        f"here = {str(path)!r}\n{body}\n"
    )
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("status", [EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR, EXIT_REQUEUE])
def test_the_status_of_the_child_is_the_status(
    valid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    body = (
        "open(here + '/argv', 'w').write(chr(10).join(sys.argv[1:]))\n"
        "open(here + '/config.yaml', 'w').write(open(sys.argv[-1]).read())\n"
        f"sys.exit({status})"
    )
    monkeypatch.setenv(environment.VARIABLE, str(_write_stub(tmp_path, body)))
    assert cli.main(["generate", *valid]) == status
    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv[:-1] == ["-m", "nemo_gdpo.generation.run"]
    given = GENERATE.parse(compose(valid, GENERATE).plain)
    assert read_config(tmp_path / "config.yaml", GENERATE) == given


def test_the_clones_own_environment_is_found(
    valid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ".venv" / "generation" / "bin"
    place.mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "environment.py").write_text("")
    _write_stub(place, "sys.exit(75)")
    assert cli.main(["generate", *valid]) == EXIT_REQUEUE


def test_on_a_machine_with_a_gpu_its_own_environment_comes_first(
    valid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "environment.py").write_text("")
    monkeypatch.setattr(environment, "GPU_DEVICE", tmp_path)
    assert "`make python-generation-gpu`" in _refused(capsys, *valid)
    for name, status in (("generation", 1), ("generation-gpu", 75)):
        place = tmp_path / ".venv" / name / "bin"
        place.mkdir(parents=True)
        _write_stub(place, f"sys.exit({status})")
    assert cli.main(["generate", *valid]) == 75
    monkeypatch.setattr(environment, "GPU_DEVICE", tmp_path / "none")
    assert cli.main(["generate", *valid]) == 1


def test_a_child_that_is_killed(
    valid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    script = _write_stub(tmp_path, "os.kill(os.getpid(), 9)")
    monkeypatch.setenv(environment.VARIABLE, str(script))
    assert cli.main(["generate", *valid]) == EXIT_FAILED
    error = capsys.readouterr().err
    assert "sampling was killed by SIGKILL (out of memory?)" in error
    assert error.count("\n") == 1
    with pytest.raises(GenerationError):
        environment.run_in_environment(script, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on(number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM and SIGUSR1 as they are, Ctrl-C as SIGTERM."""
    script = _write_stub(
        tmp_path,
        "def stop(number, frame):\n"
        "    open(here + '/got', 'w').write(str(number)); sys.exit(75)\n"
        "for n in (signal.SIGTERM, signal.SIGUSR1): signal.signal(n, stop)\n"
        "open(here + '/ready', 'w').close()\nfor _ in range(1200): time.sleep(0.05)",
    )
    # A job in the background inherits that it ignores Ctrl-C, and would rightly keep ignoring it.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from nemo_gdpo.generation.environment import "
        f"run_in_environment as run; sys.exit(run(Path({str(script)!r}), ''))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(parent.pid, number)
        try:
            assert parent.wait(timeout=30) == EXIT_REQUEUE
        finally:
            parent.kill()
    expected = signal.SIGTERM if number == signal.SIGINT else number
    assert (tmp_path / "got").read_text() == str(int(expected))


def test_a_signal_before_the_child_can_answer_it(tmp_path: Path) -> None:
    script = _write_stub(
        tmp_path, "open(here + '/ready', 'w').close()\nfor _ in range(1200): time.sleep(0.05)"
    )
    code = (
        "import sys; from pathlib import Path; from nemo_gdpo.generation.environment import "
        f"run_in_environment as run; sys.exit(run(Path({str(script)!r}), ''))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as parent:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGTERM)
        _, error = parent.communicate(timeout=30)
    assert parent.returncode == EXIT_REQUEUE
    assert "before sampling began" in error
