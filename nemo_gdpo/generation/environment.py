"""The generation environment: where it is, and this command run again inside it.

vLLM pins another torch than training, so it has a separate environment. `nemo-gdpo generate`
works from any other, which needs neither vLLM nor a GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from nemo_gdpo.errors import EXIT_REQUEUE, UserError
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.launch.signals import ALL_SIGNALS, StopRequest

VARIABLE = "NEMO_GDPO_GENERATION_PYTHON"
MODULE = "nemo_gdpo.generation.run"
ROOT = Path(__file__).resolve().parents[2]
"""Repository root of a source checkout."""
GPU_DEVICE = Path("/dev/nvidiactl")
"""Device file of NVIDIA's driver, which is there whatever build of torch this interpreter has."""
_PROBE = (
    "import importlib.util as u, sys; "
    "sys.exit(3 if u.find_spec('vllm') is None else 4 if u.find_spec('nemo_gdpo') is None else 0)"
)


def has_vllm() -> bool:
    """Whether this interpreter can import vLLM."""
    return importlib.util.find_spec("vllm") is not None


def _is_clone() -> bool:
    return (ROOT / "tools" / "environment.py").is_file()


def find_python(configured: str | None) -> Path | None:
    """The interpreter to sample with; None is this one.

    Args:
        configured: `generation.python`.

    Raises:
        UserError: no environment was found, or it lacks vLLM or this package.
    """
    named = configured or os.environ.get(VARIABLE)
    origin = "generation.python" if configured else VARIABLE
    if named:
        python = Path(named).absolute()
        if not os.access(python, os.X_OK) or python.is_dir():
            raise UserError(
                f"{origin}: {named} is not a program; give the python of an environment with vLLM, "
                "or leave it out and run `make python-generation`"
            )
        if python == Path(sys.executable).absolute() and has_vllm():
            return None
        return _check_python(python, origin)
    if has_vllm():
        return None
    for environment in _own_environments() if _is_clone() else ():
        python = ROOT / ".venv" / environment / "bin" / "python"
        if python.exists():
            return _check_python(python, str(python))
    raise UserError(
        "no generation environment was found (vLLM is not installed here); run `make "
        f"python-{_own_environments()[0]}` in the clone, or name the python of one with vLLM: "
        f"export {VARIABLE}=PYTHON"
    )


def _own_environments() -> tuple[str, ...]:
    """Names below the clone's .venv, the fastest that this machine can use first."""
    return ("generation-gpu", "generation") if GPU_DEVICE.exists() else ("generation",)


def _check_python(python: Path, origin: str) -> Path:
    done = subprocess.run(
        [str(python), "-c", _PROBE],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return python
    lacks = {3: "no vLLM", 4: "no nemo_gdpo"}.get(done.returncode)
    if lacks is None:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        lacks = f"a Python that does not start ({lines[-1]})"
    raise UserError(
        f"{origin}: {python} has {lacks}; run `make python-generation`, or name the python of "
        "another environment"
    )


def child_environment() -> dict[str, str]:
    """This environment, and the clone's package to be found by another interpreter."""
    environment = dict(os.environ)
    if _is_clone():
        # Not for an installed package: that would bring all its neighbours along.
        earlier = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *earlier])
    return environment


def _wait_for_exit(child: subprocess.Popen[bytes]) -> int:
    """Wait for it, waking now and then.

    A signal that comes between Python's last look and the system call of a wait without end is
    answered only when the child ends, hours later.
    """
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=60.0)


def run_in_environment(python: Path, config_yaml: str) -> int:
    """Run the sampling part with another interpreter, pass signals on, return its exit status.

    Args:
        python: the interpreter.
        config_yaml: the checked configuration.

    Raises:
        GenerationError: it was killed.
    """
    with tempfile.TemporaryDirectory(prefix="nemo_gdpo-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(config_yaml, encoding="utf-8")
        return _run_child([str(python), "-m", MODULE, str(file)])


def _run_child(command: list[str]) -> int:
    forwarded: set[int] = set()
    child: subprocess.Popen[bytes] | None = None

    def forward() -> None:
        if stop.received is None:
            return
        # Ctrl-C and a lost terminal ask the child to stop as SIGTERM does.
        as_term = stop.received in (signal.SIGINT, signal.SIGHUP)
        sent: int = signal.SIGTERM if as_term else stop.received
        forwarded.add(sent)
        if child is not None and child.poll() is None:
            child.send_signal(sent)

    def kill() -> None:
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # helpers of one that was killed

    with StopRequest(ALL_SIGNALS) as stop:
        stop.notify(forward)
        stop.before_end(kill)
        try:
            # A separate group: a terminal's Ctrl-C reaches it only through this process.
            child = subprocess.Popen(command, env=child_environment(), process_group=0)
            forward()  # what came before there was a child
            status = _wait_for_exit(child)
        finally:
            kill()
    if status >= 0:
        return status
    if -status in forwarded:
        # It answers a signal in its own way as soon as it has something to lose.
        print("nemo-gdpo: stopped by a signal before sampling began", file=sys.stderr)
        return EXIT_REQUEUE
    reason = signal.Signals(-status).name
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    raise GenerationError(
        f"sampling was killed by {reason}{hint}; what it wrote is intact: run the same command "
        "again to make the rest"
    )
