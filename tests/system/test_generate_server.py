"""`nemo-gdpo generate generation.backend=server` against vLLM's own OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR
from nemo_gdpo.generation import environment
from nemo_gdpo.generation.engine_arguments import environment as engine_environment
from nemo_gdpo.launch.ports import free_port
from tests.support.commands import DEADLINE, finish, started
from tests.support.ranks import ROOT, clean_environment

from .sampled_runs import NUM_SAMPLES, Sampled, Trained, generate, rows

pytestmark = pytest.mark.engine


@dataclass
class Server:
    """The server's process, its address and what it printed."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self) -> None:
        limit = time.monotonic() + 2 * DEADLINE
        while True:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < limit, self.log.read_text()[-4000:]
            try:
                if httpx.get(f"{self.url}/models", timeout=5.0).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)


@pytest.fixture(scope="module")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    python = environment.find_python(None) or sys.executable
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(trained.hf), "--served-model-name", "tiny", "--dtype", "float32",
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "128",
        "--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(2**28),
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192",
        "--generation-config", "vllm", "--disable-log-stats",
    ]  # fmt: skip
    # One process, so that killing it leaves nothing behind.
    variables = clean_environment() | engine_environment(cpu=True) | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = Server(process, f"http://127.0.0.1:{port}/v1", log)
    try:
        running.wait()
        yield running
    finally:
        running.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _overrides(server: Server, *more: str) -> list[str]:
    return [
        "generation.backend=server",
        f"generation.server.url='{server.url}'",
        "generation.server.model=tiny",
        "generation.server.concurrency=4",
        "generation.server.retries=1",
        *more,
    ]


def test_the_same_seeds_give_the_same_answers_as_the_engine(
    server: Server, trained: Trained, sampled: Sampled, tmp_path: Path
) -> None:
    """Every sample's own seed, the same end tokens, the same log-probs: over the wire, too."""
    done = generate(*trained.overrides(tmp_path), *_overrides(server))
    assert done.status == EXIT_DONE, done.err
    found = rows(tmp_path)
    assert found.keys() == sampled.rows.keys()
    for key, row in sampled.rows.items():
        for name in ("prompt_token_ids", "token_ids", "outputs", "finish_reasons", "seeds"):
            assert found[key][name] == row[name], (key, name)
        for one, other in zip(found[key]["token_logprobs"], row["token_logprobs"], strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        assert found[key]["model_hash"] == row["model_hash"]
        assert found[key]["versions"]["engine"] == "server"
        assert found[key]["versions"]["engine_version"].startswith("vllm 0.")
    # A directory of the engine's samples does not take the server's.
    refused = generate(*trained.overrides(sampled.directory), *_overrides(server))
    assert refused.status == EXIT_USER_ERROR
    assert 'engine.engine is "vllm" there and "server" here' in refused.err


@pytest.mark.nightly
def test_the_server_is_killed_in_the_middle(
    server: Server, trained: Trained, sampled: Sampled, tmp_path: Path
) -> None:
    """Last of this file: the server does not come back."""
    overrides = _overrides(server, "generation.server.concurrency=1")
    shard = tmp_path / "generations-00000.jsonl"
    with started("generate", *trained.overrides(tmp_path), *overrides) as process:
        limit = time.monotonic() + 2 * DEADLINE
        while not shard.exists() or b"\n" not in shard.read_bytes():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.005)
        server.kill()
        done = finish(process)
    assert done.status == EXIT_FAILED
    (complaint,) = done.complaints
    assert "is gone or failing" in complaint
    assert "Traceback" not in done.err
    found = rows(tmp_path)
    assert 1 <= len(found) < len(sampled.rows)
    for key, row in found.items():
        assert len(row["outputs"]) == NUM_SAMPLES
        assert row["token_ids"] == sampled.rows[key]["token_ids"]
    again = generate(*trained.overrides(tmp_path), *overrides)
    assert again.status == EXIT_FAILED
    assert len(again.complaints) == 1
    assert rows(tmp_path).keys() == found.keys()
